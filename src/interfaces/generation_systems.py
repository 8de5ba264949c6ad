"""The systems that `smallgpt bench generate` puts side by side: the same random weights and prompts, greedily continued."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from smallgpt.application.comparing_generation import GenerationSitting
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import ConfigError, NumericsError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.sampling import Sampling
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.competitors import gpt2, gpt2_weights
from smallgpt.interfaces.fresh_process import in_fresh_process

SYSTEMS = ("transformers", "smallgpt-uncached", "smallgpt")
TIE = 1e-4
"""Two logits this near are as good as one another: rounding may choose between them."""

Continue = Callable[[Tensor, int], Tensor]
"""(prompts (B, T) int64, number of new tokens n) -> the new tokens (B, n)."""


def verify(systems: Sequence[str], config: GPTConfig, device: str, *, prompt_tokens: int, new_tokens: int) -> None:
    """Raise NumericsError if a system's tokens are not the model's most likely ones. In a process of its own.

    A system that is not installed is passed over.
    """
    in_fresh_process(verify_here, systems, config, device, prompt_tokens=prompt_tokens, new_tokens=new_tokens)


def verify_here(systems: Sequence[str], config: GPTConfig, device: str, *, prompt_tokens: int, new_tokens: int) -> None:
    """`verify` in this process."""
    place = devices.choose_device(device)
    model, prompts = random_model(config, place), _prompts(config, 2, prompt_tokens, place)
    for system in systems:
        try:
            run = system_of(system, config, place, model.state_dict())
        except ConfigError:
            continue
        check(system, model, prompts, run(prompts, new_tokens))


def sit(
    system: str, config: GPTConfig, device: str, *, prompt_tokens: int, new_tokens: int, streams: int
) -> GenerationSitting:
    """Continue `streams` prompts with `system` in a process of its own. Raises ConfigError where it is not installed."""
    return in_fresh_process(
        sit_here, system, config, device, prompt_tokens=prompt_tokens, new_tokens=new_tokens, streams=streams
    )


def sit_here(
    system: str, config: GPTConfig, device: str, *, prompt_tokens: int, new_tokens: int, streams: int
) -> GenerationSitting:
    """`sit` in this process."""
    place = devices.choose_device(device)
    torch.set_num_threads(int(devices.choose_threads(None).value))
    run, prompts = system_of(system, config, place), _prompts(config, streams, prompt_tokens, place)
    run(prompts, 2)
    return GenerationSitting(
        system=system,
        streams=streams,
        new_tokens=new_tokens,
        first_token_seconds=_seconds(lambda: run(prompts, 1), place),
        seconds=_seconds(lambda: run(prompts, new_tokens), place),
        peak_memory_bytes=devices.memory_in_use(place),
    )


def _prompts(config: GPTConfig, streams: int, tokens: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (streams, tokens), generator=generator).to(device)


def random_model(config: GPTConfig, device: torch.device) -> GPT:
    """A model whose next token depends on all that came before, so that a wrong cache shows.

    As initialised, a model says its last token again: the blocks add too little. Their matrices are made ten times as wide.
    """
    torch.manual_seed(0)
    model = GPT(config).to(device).eval()
    for name, parameter in model.named_parameters():
        if ".h." in name and parameter.dim() == 2:
            parameter.data.mul_(10)
    return model


def system_of(
    system: str, config: GPTConfig, device: torch.device, weights: dict[str, Tensor] | None = None
) -> Continue:
    """How `system` continues prompts: ours with the weights of random_model, transformers with them if they are given."""
    if system == "transformers":
        return _transformers(config, device, weights)
    model = random_model(config, device)
    return _cached(model) if system == "smallgpt" else _uncached(model)


def _cached(model: GPT) -> Continue:
    greedy = Sampling(temperature=0)
    return lambda prompts, n: torch.cat([*model.stream(prompts, n, greedy)], dim=1)


def _uncached(model: GPT) -> Continue:
    """The whole context computed anew for every token."""

    @torch.inference_mode()
    def run(prompts: Tensor, n: int) -> Tensor:
        idx = prompts
        for _ in range(n):
            idx = torch.cat([idx, model(idx)[:, -1].argmax(-1, keepdim=True)], dim=1)
        return idx[:, prompts.size(1) :]

    return run


def _transformers(config: GPTConfig, device: torch.device, weights: dict[str, Tensor] | None) -> Continue:
    theirs = gpt2(config).to(device).eval()
    if weights is not None:
        theirs.load_state_dict(gpt2_weights(weights))

    def run(prompts: Tensor, n: int) -> Tensor:
        everything = theirs.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=n,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        new: Tensor = everything[:, prompts.size(1) :]
        return new

    return run


@torch.inference_mode()
def check(system: str, model: GPT, prompts: Tensor, new: Tensor) -> None:
    """Raise NumericsError unless every new token (B, n) is the most likely one after prompts (B, T) and those before it.

    One pass over the whole text tells, and by induction the greedy continuation without a cache is then the same; a token
    whose logit is within TIE of the best one passes.
    """
    logits = model(torch.cat([prompts, new], dim=1)[:, :-1])[:, prompts.size(1) - 1 :]  # (B, n, V)
    short = logits.amax(-1) - logits.gather(-1, new[..., None])[..., 0]  # (B, n)
    if short.max() > TIE:
        at = int(short.amax(0).gt(TIE).nonzero()[0])
        raise NumericsError(
            f"{system} goes wrong at new token {at + 1}: its logit is {short[:, at].max():.2g} below the best, and {TIE:g} "
            "is allowed. Nothing was timed."
        )


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start

"""The systems that `smallgpt bench generate` puts side by side: the same random weights and prompts, greedily continued."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from smallgpt.application.comparing_generation import GenerationSitting
from smallgpt.application.engine import Engine
from smallgpt.application.streams import Request
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import ConfigError, NumericsError
from smallgpt.domain.flops import prefill_flops
from smallgpt.domain.gpt import GPT
from smallgpt.domain.sampling import Sampling
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.competitors import gpt2, gpt2_weights, plain_weights, seeds_generate
from smallgpt.infrastructure.plain_gpt import PlainGPT
from smallgpt.interfaces.fresh_process import in_fresh_process
from smallgpt.kernels.packed import Weights, matrix_bytes, pack

OURS: dict[str, Weights] = {"smallgpt": "float32", "smallgpt-bf16": "bfloat16", "smallgpt-int8": "int8"}
SYSTEMS = ("transformers", "transformers-bf16", "seed", "smallgpt-uncached", *OURS)
UNCACHED = ("seed", "smallgpt-uncached")
TIE = 1e-4
"""Two logits this near are as good as one another: rounding may choose between them."""
BF16_TIE = 2**-5
"""The same where logits are rounded to 8 bits, as a share of the largest: a few units in the last place."""
REPEATS, SECONDS = 5, 2.0
"""A sitting continues its prompts so often, or for so long, whichever is less."""

Continue = Callable[[Tensor, int], Tensor]
"""(prompts (B, T) int64, number of new tokens n) -> the new tokens (B, n)."""


def verify(
    systems: Sequence[str], config: GPTConfig, device: str, *, prompt_tokens: int, new_tokens: int, streams: int
) -> None:
    """Raise NumericsError if a system's tokens are not the model's most likely ones. In a process of its own.

    So many streams as will be timed are checked of those that keep a cache, two of those that compute all anew. A system
    that is not installed, or not for this device, is passed over.
    """
    in_fresh_process(
        verify_here, systems, config, device, prompt_tokens=prompt_tokens, new_tokens=new_tokens, streams=streams
    )


def verify_here(
    systems: Sequence[str], config: GPTConfig, device: str, *, prompt_tokens: int, new_tokens: int, streams: int
) -> None:
    """`verify` in this process."""
    place = devices.choose_device(device)
    model = random_model(config, place)
    for system in systems:
        prompts = _prompts(config, min(2, streams) if system in UNCACHED else streams, prompt_tokens, place)
        try:
            new = system_of(system, config, place, model.state_dict())(prompts, new_tokens)
            judge = random_model(config, place)
            if system in OURS:
                pack(judge, OURS[system])
        except ConfigError:
            continue
        if system == "transformers-bf16":
            judge = judge.bfloat16()
        check(system, judge, prompts, new, exact=not system.endswith(("-bf16", "-int8")))


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
    run(prompts, 4)
    weights: Weights = "bfloat16" if system.endswith("-bf16") else OURS.get(system, "float32")
    return GenerationSitting(
        system=system,
        streams=streams,
        new_tokens=new_tokens,
        first_token_seconds=_seconds(lambda: run(prompts, 1), place),
        seconds=_seconds(lambda: run(prompts, new_tokens), place),
        peak_memory_bytes=devices.memory_in_use(place),
        weight_bytes=matrix_bytes(config, weights),
        prefill_flops=streams * prefill_flops(config, prompt_tokens),
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
    """How `system` continues prompts: ours with the weights of random_model, others with them if they are given."""
    if system.startswith("transformers"):
        return _transformers(config, device, weights, torch.bfloat16 if system.endswith("-bf16") else torch.float32)
    if system == "seed":
        plain = PlainGPT(config).to(device).eval()
        if weights is not None:
            plain.load_state_dict(plain_weights(weights))
        return lambda prompts, n: seeds_generate(plain, prompts, n)[:, prompts.size(1) :]
    model = random_model(config, device)
    if system not in OURS:
        return _uncached(model)
    pack(model, OURS[system])
    return _engine(model)


def _engine(model: GPT) -> Continue:
    greedy = Sampling(temperature=0)
    engines: dict[int, Engine] = {}  # kept, as a server keeps its own

    def run(prompts: Tensor, n: int) -> Tensor:
        if len(prompts) not in engines:
            engines[len(prompts)] = Engine(model, len(prompts))
        engine = engines[len(prompts)]
        streams = [engine.add(Request(prompt, n, greedy)) for prompt in prompts.tolist()]
        while any(not stream.finish for stream in streams):
            engine.step()
        return torch.tensor([stream.ids[prompts.size(1) :] for stream in streams], device=prompts.device)

    return run


def _uncached(model: GPT) -> Continue:
    """The whole context computed anew for every token."""

    @torch.inference_mode()
    def run(prompts: Tensor, n: int) -> Tensor:
        idx = prompts
        for _ in range(n):
            idx = torch.cat([idx, model(idx)[:, -1].argmax(-1, keepdim=True)], dim=1)
        return idx[:, prompts.size(1) :]

    return run


def _transformers(
    config: GPTConfig, device: torch.device, weights: dict[str, Tensor] | None, dtype: torch.dtype
) -> Continue:
    theirs = gpt2(config).to(device).eval()
    if weights is not None:
        theirs.load_state_dict(gpt2_weights(weights))
    theirs = theirs.to(dtype)

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
def check(system: str, model: GPT, prompts: Tensor, new: Tensor, *, exact: bool = True) -> None:
    """Raise NumericsError unless every new token (B, n) is the most likely one after prompts (B, T) and those before it.

    One pass over the whole text tells, and by induction the greedy continuation without a cache is then the same; a token
    whose logit is within TIE of the best one passes, or within BF16_TIE of the largest where it is not `exact`.
    """
    logits = model(torch.cat([prompts, new], dim=1)[:, :-1])[:, prompts.size(1) - 1 :].float()  # (B, n, V)
    short = logits.amax(-1) - logits.gather(-1, new[..., None])[..., 0]  # (B, n)
    allowed = TIE if exact else BF16_TIE * float(logits.abs().max())
    if short.max() > allowed:
        at = int(short.amax(0).gt(allowed).nonzero()[0])
        raise NumericsError(
            f"{system} goes wrong at new token {at + 1}: its logit is {short[:, at].max():.2g} below the best, and "
            f"{allowed:.2g} is allowed. Nothing was timed."
        )


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """Median of the repeats."""
    taken: list[float] = []
    while not taken or (len(taken) < REPEATS and sum(taken) < SECONDS):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return median(taken)

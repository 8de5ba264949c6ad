"""How near smallgpt is to transformers' GPT-2: logits, loss, greedy tokens, gradients, and the weights after a step.

    python tests/ecosystem/parity_table.py

Each row is a random model of another shape, written as `export --to hf` does and loaded by transformers with no code of
ours. Differences are the largest of all numbers, and in brackets as a share of the largest number itself. Both sides take the
loss of float32 logits, so that in float64 it alone has float32's rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from smallgpt.domain.config import Activation, GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.formats import hugging_face
from smallgpt.infrastructure.formats.portable import PortableModel

SHAPES = {
    "smallest": GPTConfig(block_size=2, vocab_size=3, n_layer=1, n_head=1, n_embd=2),
    "odd sizes": GPTConfig(block_size=77, vocab_size=263, n_layer=2, n_head=3, n_embd=39),
    "deep": GPTConfig(block_size=80, vocab_size=128, n_layer=7, n_head=2, n_embd=32),
    "one wide head": GPTConfig(block_size=96, vocab_size=311, n_layer=2, n_head=1, n_embd=80),
    "a head a number": GPTConfig(block_size=72, vocab_size=97, n_layer=2, n_head=16, n_embd=16),
    "many ids": GPTConfig(block_size=74, vocab_size=5003, n_layer=1, n_head=4, n_embd=64),
}
"""By name; each with both activations, with biases and without."""
PROMPT = 8


@dataclass(frozen=True)
class Row:
    """Largest differences of a model, and the largest numbers themselves; (largest difference, largest number) each."""

    name: str
    config: GPTConfig
    logits: tuple[float, float]
    loss: tuple[float, float]
    gradients: tuple[float, float]
    weights: tuple[float, float]
    """After one step of AdamW."""
    greedy: tuple[int, int]
    """Equal tokens, and how many were asked of transformers' own generate() with its cache."""


def configs() -> list[tuple[str, GPTConfig]]:
    """Every shape with every choice of activation and biases."""
    activations: tuple[Activation, ...] = ("gelu", "gelu_tanh")
    return [
        (name, shape.model_copy(update={"dropout": 0.0, "activation": activation, "bias": bias}))
        for name, shape in SHAPES.items()
        for activation in activations
        for bias in (True, False)
    ]


def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """Every number of it random, biases and norms too, and large enough to matter."""
    torch.manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.5 if parameter.dim() == 1 else 0.1) + ("ln" in name))
    return model.eval()


def exported(model: GPT, folder: Path) -> Any:
    """The model as transformers loads what was exported."""
    from transformers import AutoModelForCausalLM

    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    hugging_face.write(PortableModel(model.config, weights), folder)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def row(name: str, config: GPTConfig, dtype: torch.dtype) -> Row:
    """Compare one model in one kind of numbers."""
    ours = random_model(config)
    with TemporaryDirectory() as folder:
        theirs = exported(ours, Path(folder)).to(dtype)
    ours = ours.to(dtype)
    idx = torch.randint(config.vocab_size, (3, config.block_size), generator=torch.Generator().manual_seed(1))
    greedy = _greedy(ours, theirs, idx[:1, : min(PROMPT, config.block_size - 1)])
    logits, loss = ours(idx), ours(idx[:, :-1], idx[:, 1:])
    answer = theirs(idx, labels=idx)
    loss.backward()
    answer.loss.backward()
    gradients = _apart(_gradients(_weights(ours)), _ours_way(ours, _gradients(_weights(theirs))))
    for model in (ours, theirs):
        # keys' biases change no logit, so their gradients are rounding; the usual eps would take that for a direction
        torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.1).step()
    return Row(
        name,
        config,
        logits=_apart({"": logits}, {"": answer.logits}),
        loss=_apart({"": loss}, {"": answer.loss}),
        gradients=gradients,
        weights=_apart(_weights(ours), _ours_way(ours, _weights(theirs))),
        greedy=greedy,
    )


def _greedy(ours: GPT, theirs: Any, prompt: Tensor) -> tuple[int, int]:
    """Tokens equal before the first that differs, and how many were asked for."""
    number = min(64, ours.config.block_size - prompt.size(1))
    mask = torch.ones_like(prompt)
    expected = theirs.generate(prompt, attention_mask=mask, max_new_tokens=number, do_sample=False, use_cache=True)
    found = ours.generate(prompt, number, temperature=0.0)
    return int((found == expected)[0, prompt.size(1) :].cumprod(0).sum()), number


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def _gradients(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


def _ours_way(ours: GPT, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors of our parameters, by our names and our way round."""
    layout = hugging_face.layout(tensors)
    return {name: layout.turned(name, tensors[layout.theirs(name)]) for name, _ in ours.named_parameters()}


def _apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, float]:
    """The largest difference between tensors of one name, and the largest number of theirs."""
    assert ours.keys() == theirs.keys()
    difference = max(float((one - theirs[name]).detach().abs().max()) for name, one in ours.items())
    return difference, max(float(other.detach().abs().max()) for other in theirs.values())


def _words(found: Row) -> str:
    """A line of the table."""
    config = found.config
    shape = [config.n_layer, config.n_head, config.n_embd, config.vocab_size, config.block_size]
    pairs = (found.logits, found.loss, found.gradients, found.weights)
    apart = [f"{difference:.1e} ({difference / largest:.0e})" for difference, largest in pairs]
    model = [found.name, config.activation, "yes" if config.bias else "no", *map(str, shape)]
    return f"| {' | '.join([*model, *apart, '{} of {}'.format(*found.greedy)])} |"


def main() -> None:
    """Print the table for float32 and for float64."""
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float64):
        print(
            f"\n{str(dtype).removeprefix('torch.')}, torch {torch.__version__}, transformers {transformers.__version__}\n"
        )
        heads = ["model", "activation", "biases", "layers", "heads", "width", "ids", "context"]
        heads += ["logits", "loss", "gradients", "weights after a step", "greedy tokens equal"]
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
        for name, config in configs():
            print(_words(row(name, config, dtype)), flush=True)


if __name__ == "__main__":
    main()

"""What every format is read into and written from: a model's sizes, weights and tokenizer, and nothing of a tool."""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.formats.plain import OURS, Layout
from smallgpt.infrastructure.tokenizers import AnyTokenizer

MASKS = (".attn.bias", ".attn.masked_bias", ".attn.mask")
"""Buffers of the causal mask that older programs save among the weights."""
NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What weights may be kept in."""


@dataclass(frozen=True)
class PortableModel:
    """A model between two formats."""

    config: GPTConfig
    weights: dict[str, Tensor]
    """By smallgpt's names, float32; the tied output head is `transformer.wte.weight` alone."""
    tokenizer: AnyTokenizer | None = None
    name: str = "smallgpt"
    """For people to read."""
    notes: tuple[str, ...] = ()
    """What could not be kept as it was, a sentence each."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """What is known of its training, for a model card."""

    def model(self) -> GPT:
        """The model itself, in eval mode."""
        model = GPT(self.config)
        model.load_state_dict(self.weights | {"lm_head.weight": self.weights["transformer.wte.weight"]})
        return model.eval()


def expected_shapes(config: GPTConfig, layout: Layout = OURS) -> dict[str, torch.Size]:
    """The shape of every parameter by a format's name for it, the tied output head not counted."""
    return {
        layout.theirs(name): torch.Size(reversed(shape) if layout.turns(name, len(shape)) else shape)
        for name, shape in _shapes(config)
    }


def _shapes(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter of a GPT and its shape, without making one."""
    C, wide = config.n_embd, 4 * config.n_embd
    norms = [("weight", (C,)), *([("bias", (C,))] if config.bias else [])]
    linears = {"attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "mlp.c_fc": (wide, C), "mlp.c_proj": (C, wide)}
    yield "transformer.wte.weight", (config.vocab_size, C)
    yield "transformer.wpe.weight", (config.block_size, C)
    for block in (f"transformer.h.{layer}" for layer in range(config.n_layer)):
        for norm in ("ln1", "ln2"):
            yield from ((f"{block}.{norm}.{kind}", shape) for kind, shape in norms)
        for name, shape in linears.items():
            yield f"{block}.{name}.weight", shape
            if config.bias:
                yield f"{block}.{name}.bias", shape[:1]
    yield from ((f"transformer.ln_f.{kind}", shape) for kind, shape in norms)


def taken(tensors: Mapping[str, Tensor], config: GPTConfig, where: str, layout: Layout = OURS) -> dict[str, Tensor]:
    """The weights of a model of these sizes by our names, as float32, out of tensors by a format's.

    Masks are left out, and an output head that is the embedding. Raises CheckpointError that names a tensor which is
    missing, surplus, of another shape or kind of number, or not finite.
    """
    if config.n_layer > len(tensors):
        raise CheckpointError(f"{where}: {len(tensors)} tensors, but its configuration says {config.n_layer} blocks")
    expected = expected_shapes(config, layout)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(MASKS)}
    head = tensors.pop("lm_head.weight", None)
    _check_names(expected.keys(), tensors.keys(), where)
    _check_apart(tensors.values(), where)
    kept = {name: _checked(name, tensors[name], shape, where) for name, shape in expected.items()}
    if head is not None and not _equal(head, tensors[layout.theirs("transformer.wte.weight")]):
        raise CheckpointError(
            f"{where}: its output head is a matrix of its own; smallgpt's models share it with the embedding"
        )
    return {name: layout.turned(name, kept[layout.theirs(name)]) for name, _ in _shapes(config)}


def kinds_noted(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A sentence on numbers that are not float32, which all of them become."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} - {torch.float32}
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    if not kinds:
        return ()
    effect = "rounded to float32" if torch.float64 in kinds else "kept as float32, which holds each of them exactly"
    return (f"its {names} weights are {effect}",)


def _checked(name: str, tensor: Tensor, shape: torch.Size, where: str) -> Tensor:
    """A parameter as float32."""
    if tensor.shape != shape:
        raise CheckpointError(
            f"{where}: {name} has shape {_words(tensor.shape)}, but its configuration says {_words(shape)}; "
            "weights and configuration belong to different models"
        )
    if tensor.dtype not in NUMBERS or tensor.layout is not torch.strided or tensor.is_meta:
        raise CheckpointError(
            f"{where}: {name} holds {tensor.dtype}, {tensor.layout}, not plain floating-point numbers; "
            "give the model as it was before it was quantized"
        )
    kept = tensor.detach().to("cpu", torch.float32).contiguous()
    if not kept.isfinite().all():
        raise CheckpointError(f"{where}: {name} holds numbers that are not finite; the file or the run is damaged")
    return kept


def _check_apart(tensors: Iterable[Tensor], where: str) -> None:
    """Views of the same numbers could make a model of any size out of a small file."""
    plain = [tensor for tensor in tensors if tensor.layout is torch.strided and not tensor.is_meta]
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in plain)}
    if sum(tensor.numel() * tensor.element_size() for tensor in plain) > sum(storages.values()):
        raise CheckpointError(f"{where}: its weights share their numbers; give a file that holds each of them")


def _check_names(expected: Set[str], found: Set[str], where: str) -> None:
    missing, surplus = sorted(expected - found), sorted(found - expected)
    if missing and surplus:
        raise CheckpointError(
            f"{where}: {_listed(missing)} missing, and {_listed(surplus)} unknown to a GPT-2; "
            "this is another kind of model"
        )
    if missing:
        raise CheckpointError(
            f"{where}: {_listed(missing)} missing; the file is incomplete, or of another kind of model"
        )
    if surplus:
        raise CheckpointError(f"{where}: {_listed(surplus)} unknown to a GPT-2; this is another kind of model")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def _words(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "of a single number"


def _equal(head: Tensor, embedding: Tensor) -> bool:
    return head.shape == embedding.shape and torch.equal(head, embedding.to(head.dtype))

"""What every format is read into and written from: a model's sizes, weights and tokenizer, and nothing of a tool."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.tokenizers import Tokenizer

MASKS = (".attn.bias", ".attn.masked_bias", ".attn.mask")
"""Buffers of the causal mask that older programs save among the weights."""


@dataclass(frozen=True)
class PortableModel:
    """A model between two formats."""

    config: GPTConfig
    weights: dict[str, Tensor]
    """By smallgpt's names, float32; the tied output head is `transformer.wte.weight` alone."""
    tokenizer: Tokenizer | None = None
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


def expected_shapes(config: GPTConfig) -> dict[str, torch.Size]:
    """The shape of every parameter by name, the tied output head not counted."""
    with torch.device("meta"):
        model = GPT(config)
    return {name: parameter.shape for name, parameter in model.named_parameters()}  # tied ones come once


def taken(tensors: Mapping[str, Tensor], config: GPTConfig, where: str) -> dict[str, Tensor]:
    """The weights of a model of these sizes out of tensors by our names, as float32.

    Masks are left out, and an output head that is the embedding. Raises CheckpointError that names a tensor which is
    missing, surplus, of another shape or kind of number, or not finite.
    """
    expected = expected_shapes(config)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(MASKS)}
    head = tensors.pop("lm_head.weight", None)
    _check_names(expected.keys(), tensors.keys(), where)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{where}: {name} has shape {_words(tensors[name].shape)}, but its configuration says {_words(shape)}; "
                "weights and configuration belong to different models"
            )
        if not tensors[name].is_floating_point():
            raise CheckpointError(f"{where}: {name} holds {tensors[name].dtype}, not floating-point numbers")
        if not tensors[name].isfinite().all():
            raise CheckpointError(f"{where}: {name} holds numbers that are not finite; the file or the run is damaged")
    if head is not None and not _equal(head, tensors["transformer.wte.weight"]):
        raise CheckpointError(
            f"{where}: its output head is a matrix of its own; smallgpt's models share it with the embedding"
        )
    return {name: tensors[name].detach().to("cpu", torch.float32).contiguous() for name in expected}


def _check_names(expected: Set[str], found: Set[str], where: str) -> None:
    missing, surplus = sorted(expected - found), sorted(found - expected)
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

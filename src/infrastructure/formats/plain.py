"""A GPT-2 computed from another format's own tensors by the formulas alone: what a conversion is proved against.

It shares nothing with domain/gpt.py or with torch's modules, so that a transposed matrix, a forgotten bias or the
wrong GELU shows. Slow, and meant to be read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from smallgpt.domain.config import Activation, GPTConfig

Logits = Callable[[Tensor], Tensor]
"""(B, T) int64 -> (B, T, V) float32."""


class Reader(NamedTuple):
    """A way to compute a file's model that is not smallgpt's."""

    words: str
    """Whose it is, for people."""
    logits: Logits
    logits64: Logits | None = None
    """The same in float64, from the same weights, where it can."""
    activation: Activation | None = None
    """What it computes between an MLP's layers, whatever the model says; None where that is the model's."""


EPS = 1e-5
STEMS = (
    "transformer.wte",
    "transformer.wpe",
    "transformer.h.{}.ln1",
    "transformer.h.{}.attn.c_attn",
    "transformer.h.{}.attn.c_proj",
    "transformer.h.{}.ln2",
    "transformer.h.{}.mlp.c_fc",
    "transformer.h.{}.mlp.c_proj",
    "transformer.ln_f",
)
"""Our parameters without `.weight` and `.bias`."""


@dataclass(frozen=True)
class Layout:
    """How a format names a GPT-2's tensors, and which way round it keeps the matrices of a block."""

    stems: Mapping[str, str]
    """Its name for each of STEMS, `{}` standing for the number of the block; `.weight` and `.bias` follow."""
    transposed: bool = False
    """Are matrices (inputs, outputs), as Conv1D has them, instead of (outputs, inputs)?"""

    def theirs(self, ours: str) -> str:
        """Its name for one of our parameters."""
        stem, _, kind = ours.rpartition(".")
        parts = stem.split(".")
        block = next((part for part in parts if part.isdecimal()), "")
        return f"{self.stems['.'.join('{}' if part.isdecimal() else part for part in parts)].format(block)}.{kind}"

    def turned(self, ours: str, tensor: Tensor) -> Tensor:
        """A tensor from our way round to its, or back."""
        return tensor.t().contiguous() if self.turns(ours, tensor.dim()) else tensor

    def turns(self, ours: str, dimensions: int) -> bool:
        """Does it keep this parameter the other way round?"""
        return self.transposed and ".h." in ours and dimensions == 2


OURS = Layout({stem: stem for stem in STEMS})


def reader(tensors: Mapping[str, Tensor], layout: Layout, config: GPTConfig) -> Reader:
    """The model that a format's tensors make, by its own names for them."""
    single, double = (_formulas(tensors, layout, config, dtype) for dtype in (torch.float32, torch.float64))
    return Reader("the formulas, from the file's own tensors", single, double)


def _formulas(tensors: Mapping[str, Tensor], layout: Layout, config: GPTConfig, dtype: torch.dtype) -> Logits:
    def get(ours: str) -> Tensor:
        name = layout.theirs(ours)
        if name not in tensors and ours.endswith(".bias"):
            return torch.zeros((), dtype=dtype)
        return layout.turned(ours, tensors[name].float().to(dtype))

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.einsum("btc,vc->btv", x, get(f"{name}.weight")) + get(f"{name}.bias")

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + EPS).sqrt() * get(f"{name}.weight") + get(f"{name}.bias")

    def attention(x: Tensor, name: str) -> Tensor:
        q, k, v = linear(x, f"{name}.c_attn").view(*x.shape[:2], 3, config.n_head, -1).unbind(2)  # (B, T, H, D) each
        scores = torch.einsum("bthd,bshd->bhts", q, k) / sqrt(config.head_size)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return linear(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2), f"{name}.c_proj")

    def gelu(x: Tensor) -> Tensor:
        if config.activation == "gelu_tanh":
            return 0.5 * x * (1 + torch.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + torch.erf(x / sqrt(2)))

    @torch.inference_mode()
    def run(idx: Tensor) -> Tensor:
        wte, wpe = get("transformer.wte.weight"), get("transformer.wpe.weight")
        x = wte[idx] + wpe[: idx.size(1)]
        for layer in range(config.n_layer):
            block = f"transformer.h.{layer}"
            x = x + attention(norm(x, f"{block}.ln1"), f"{block}.attn")
            x = x + linear(gelu(linear(norm(x, f"{block}.ln2"), f"{block}.mlp.c_fc")), f"{block}.mlp.c_proj")
        return torch.einsum("btc,vc->btv", norm(x, "transformer.ln_f"), wte)

    return run

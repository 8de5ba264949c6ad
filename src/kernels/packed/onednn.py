"""oneDNN's matrix product with a weight laid out for it once: what torch.compile's frozen graphs call on a CPU."""

import torch
from torch import Tensor

ROWS = 16
"""The number of rows that the layout is chosen for; others are right too."""


def is_available(dtype: torch.dtype) -> bool:
    """Has this torch oneDNN (x86 builds have), and this processor what it needs for dtype (bfloat16: AVX-512)?"""
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(weight: Tensor) -> Tensor:
    """weight (V, C) float32 or bfloat16 -> the same in oneDNN's own layout, for `linear` alone."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return packed


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, *, gelu: str | None = None) -> Tensor:
    """x (..., C), packed weight (V, C), bias (V,), all of one dtype -> (..., V), through a GELU ("none", "tanh") if asked."""
    after, approximation = ("none", "") if gelu is None else ("gelu", gelu)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, after, [], approximation)
    return y

"""Dropout, with masks that a CPU draws fast.

torch's CPU generator is asked for one number an element, by one thread: at the seed's configuration a tenth of a step. Here
a 64-bit draw decides for four elements, by 15 bits each, so a probability is off by at most 2^-16.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers by their bytes


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """As torch.nn.functional.dropout; on a CPU other numbers than torch's follow from a seed."""
    if not training or p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    y: Tensor = _Dropout.apply(x, p, None)  # type: ignore[no-untyped-call]
    return y


def draw_kept(x: Tensor, p: float) -> Tensor:
    """int8 of x's shape: -1, all bits set, with probability 1 - p, and 0 elsewhere. From torch's global CPU generator."""
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    below = bits.bitwise_and_(2**15 - 1).sub_(round((1 - p) * 2**15))
    return below.bitwise_right_shift_(15).to(torch.int8)  # the sign, in every bit


def kept_of(x: Tensor, kept: Tensor) -> Tensor:
    """x where draw_kept() gave -1, and 0 elsewhere; not scaled by 1/(1 - p)."""
    whole = WHOLE[x.element_size()]
    return x.contiguous().view(whole).bitwise_and(kept.to(whole)).view(x.dtype)


class _Dropout(torch.autograd.Function):
    """With a mask that is given, or drawn: the gradient is the same function of dy, and can so be differentiated itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, kept: Tensor | None) -> Tensor:
        if kept is None:
            kept = draw_kept(x, p)
        ctx.save_for_backward(kept)
        ctx.p = p
        return kept_of(x, kept).mul_(1 / (1 - p))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _Dropout.apply(dy, ctx.p, kept), None, None  # type: ignore[no-untyped-call]

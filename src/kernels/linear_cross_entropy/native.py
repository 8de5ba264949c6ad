"""Linear + cross-entropy by torch in chunks of rows, so that the (N, V) logits never exist at once.

The gradients are made in the forward pass, while a chunk's logits are at hand: 6·V·C FLOPs a row as in the plain form, and
nothing to recompute. They stay un-normalised until backward: divided by N in fp16, probabilities below 6e-8·N would be
lost before a loss scale could save them (a fault of fused losses elsewhere, Liger-Kernel #512).

A chunk is sized by bytes, not by V/C: at small widths such a rule gives slivers of a few dozen rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 64 * 2**20  # of fp32 logits; below about 16 MiB the repeated additions to dW cost more than the products


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float, ignore_index: int
) -> Tensor:
    """See domain.ops.LinearCrossEntropy. Under autocast the products run in its dtype; statistics are fp32."""
    if not torch.is_grad_enabled():  # inside apply() it never is
        x, weight = x.detach(), weight.detach()
    loss: Tensor = _LinearCrossEntropy.apply(x, weight, targets, label_smoothing, ignore_index)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float, ignore_index: int
    ) -> Tensor:
        dtype = _product_dtype(x, weight)
        w = weight.to(dtype)  # (V, C)
        valid = targets != ignore_index
        wants_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        dx = torch.empty_like(x) if wants_gradient else None
        dw = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if wants_gradient else None
        total = torch.zeros((), device=x.device, dtype=torch.float32)
        rows = max(1, CHUNK_BYTES // (4 * weight.size(0)))
        for start in range(0, x.size(0), rows):
            part = slice(start, start + rows)
            keep = valid[part, None]
            x_part = (x[part] * keep).to(dtype)  # (n, C); ignored rows give dw nothing
            index = targets[part, None].masked_fill(~keep, 0)
            log_p = torch.log_softmax(x_part @ w.T, -1, dtype=torch.float32)  # (n, V)
            total += _losses(log_p, index, label_smoothing).mul_(keep).sum()
            if dx is not None and dw is not None:
                slope = _slope_of_logits_(log_p, index, label_smoothing).to(dtype)
                dx[part] = (slope @ w) * keep
                _accumulate(dw, slope, x_part)
        ctx.count, ctx.weight_dtype = valid.sum(), weight.dtype
        ctx.save_for_backward(*(g for g in (dx, dw) if g is not None))
        loss: Tensor = total / ctx.count
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw = ctx.saved_tensors
        scale = grad_output / ctx.count
        return (dx * scale).to(dx.dtype), (dw * scale).to(ctx.weight_dtype), None, None, None


def _product_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return torch.promote_types(x.dtype, weight.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _losses(log_p: Tensor, index: Tensor, label_smoothing: float) -> Tensor:
    """(n, V) log-probabilities, (n, 1) targets -> (n, 1) losses."""
    nll = -log_p.gather(1, index)
    if label_smoothing == 0:
        return nll
    return (1 - label_smoothing) * nll - label_smoothing * log_p.mean(-1, keepdim=True)


def _slope_of_logits_(log_p: Tensor, index: Tensor, label_smoothing: float) -> Tensor:
    """d loss / d logits = softmax - smoothed target, written over log_p."""
    p = log_p.exp_()
    if label_smoothing:
        p -= label_smoothing / p.size(-1)
    return p.scatter_add_(1, index, p.new_full((1, 1), label_smoothing - 1).expand_as(index))


def _accumulate(dw: Tensor, slope: Tensor, x: Tensor) -> None:
    """dw (V, C) += slopeᵀ x, summed in fp32 or wider."""
    if slope.dtype == dw.dtype:
        dw.addmm_(slope.T, x)
    else:
        dw += slope.T @ x

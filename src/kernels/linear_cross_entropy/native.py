"""Linear + cross-entropy by torch in chunks of rows, so that the (N, V) logits never exist at once.

The gradients are made in the forward pass, while a chunk's logits are at hand: 6·V·C FLOPs a row as in the plain form, and
nothing to recompute. They stay un-normalised until backward: divided by N in fp16, probabilities below 6e-8·N would be
lost before a loss scale could save them (a fault of fused losses elsewhere, Liger-Kernel #512). Only for the losses of
single rows, whose slopes nobody knows yet, does backward compute the logits again: 8·V·C.

A chunk is sized by bytes, not by V/C: at small widths such a rule gives slivers of a few dozen rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from smallgpt.domain.ops import Reduction
from smallgpt.kernels.linear_cross_entropy.contract import product_dtype, reduce, scaled, slopes_of_losses

CHUNK_BYTES = 64 * 2**20  # of fp32 logits; below about 16 MiB the repeated additions to dW cost more than the products


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """See domain.ops.LinearCrossEntropy. Under autocast the products run in its dtype; statistics are fp32."""
    if not torch.is_grad_enabled():  # inside apply() it never is
        x, weight = x.detach(), weight.detach()
    loss: Tensor = _LinearCrossEntropy.apply(x, weight, targets, label_smoothing, ignore_index, z_loss, reduction)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        label_smoothing: float,
        ignore_index: int,
        z_loss: float,
        reduction: Reduction,
    ) -> Tensor:
        dtype = product_dtype(x, weight)
        w = weight.to(dtype)
        valid = targets != ignore_index
        at_once = reduction != "none" and any(ctx.needs_input_grad[:2])
        dx, dw = _zeros(x, weight) if at_once else (None, None)
        losses = _walk(x, w, targets, valid, label_smoothing, z_loss, None, dx, dw)
        ctx.options, ctx.reduction, ctx.weight_dtype = (label_smoothing, z_loss), reduction, weight.dtype
        if at_once:
            ctx.save_for_backward(valid, dx, dw)
        else:
            ctx.save_for_backward(valid, x, w, targets)
        return reduce(losses, valid, reduction)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        valid, *kept = ctx.saved_tensors
        scale, share = slopes_of_losses(grad_output, valid, ctx.reduction)
        if share is None:
            dx, dw = kept
        else:
            x, w, targets = kept
            label_smoothing, z_loss = ctx.options
            dx, dw = _zeros(x, w)
            _walk(x, w, targets, valid, label_smoothing, z_loss, share, dx, dw)
        return scaled(dx, scale, dx.dtype), scaled(dw, scale, ctx.weight_dtype), None, None, None, None, None


def _zeros(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Where dx (N, C) goes and dW (V, C) is summed, in fp32 or wider."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.empty_like(x), torch.zeros_like(weight, dtype=wide)


def _walk(
    x: Tensor,
    w: Tensor,
    targets: Tensor,
    valid: Tensor,
    label_smoothing: float,
    z_loss: float,
    share: Tensor | None,
    dx: Tensor | None,
    dw: Tensor | None,
) -> Tensor:
    """The (N,) losses; and, where there is a place for them, the gradients of Σ share·loss. w has the products' dtype."""
    losses = x.new_empty(x.size(0), dtype=torch.float32)
    rows = max(1, CHUNK_BYTES // (4 * w.size(0)))
    for start in range(0, x.size(0), rows):
        part = slice(start, start + rows)
        keep = valid[part, None]
        x_part = (x[part] * keep).to(w.dtype)  # (n, C); ignored rows give dw nothing
        index = targets[part, None].masked_fill(~keep, 0)
        logits = x_part @ w.T  # (n, V)
        log_p = torch.log_softmax(logits, -1, dtype=torch.float32)
        lse = logits[:, :1].float() - log_p[:, :1]  # (n, 1)
        losses[part] = (_losses(log_p, index, label_smoothing) + z_loss * lse.square()).mul_(keep)[:, 0]
        if dx is not None and dw is not None:
            slope = _slope_of_logits_(log_p, index, label_smoothing, 1 + 2 * z_loss * lse if z_loss else None)
            slope = (slope if share is None else slope.mul_(share[part, None])).to(w.dtype)
            dx[part] = (slope @ w) * keep
            _accumulate(dw, slope, x_part)
    return losses


def _losses(log_p: Tensor, index: Tensor, label_smoothing: float) -> Tensor:
    """(n, V) log-probabilities, (n, 1) targets -> (n, 1) losses."""
    nll = -log_p.gather(1, index)
    if label_smoothing == 0:
        return nll
    return (1 - label_smoothing) * nll - label_smoothing * log_p.mean(-1, keepdim=True)


def _slope_of_logits_(log_p: Tensor, index: Tensor, label_smoothing: float, weight_of_p: Tensor | None) -> Tensor:
    """d loss / d logits = weight_of_p·softmax - smoothed target, written over log_p."""
    p = log_p.exp_()
    if weight_of_p is not None:
        p *= weight_of_p
    if label_smoothing:
        p -= label_smoothing / p.size(-1)
    return p.scatter_add_(1, index, p.new_full((1, 1), label_smoothing - 1).expand_as(index))


def _accumulate(dw: Tensor, slope: Tensor, x: Tensor) -> None:
    """dw (V, C) += slopeᵀ x, summed in fp32 or wider."""
    if slope.dtype == dw.dtype:
        dw.addmm_(slope.T, x)
    else:
        dw += slope.T @ x

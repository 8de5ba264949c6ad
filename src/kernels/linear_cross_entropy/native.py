"""Linear + cross-entropy by torch in chunks of rows, so that the (N, V) logits never exist at once.

The gradients are made in the forward pass, while a chunk's logits are at hand: 6·V·C FLOPs a row as in the plain form, and
nothing to recompute. They stay un-normalised until backward: divided by N in fp16, probabilities below 6e-8·N would be
lost before a loss scale could save them (a fault of fused losses elsewhere, Liger-Kernel #512). Only for the losses of
single rows, whose slopes nobody knows yet, does backward compute the logits again: 8·V·C.

A chunk is sized by bytes, not by V/C: at small widths such a rule gives slivers of a few dozen rows. On a CPU the softmax
then goes through a chunk by groups of rows so few that their fp32 numbers stay in the cache, and the gradient is written
over the logits.
"""

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smallgpt.domain.gradients import first_derivative_only
from smallgpt.domain.ops import Reduction
from smallgpt.kernels.linear_cross_entropy.contract import product_dtype, reduce, scaled, slopes_of_losses

# Of logits: 512 rows of GPT-2's vocabulary in bf16. Below about 16 MiB repeated additions to dW cost more than the products.
CHUNK_BYTES = 52 * 2**20
CACHE_BYTES = 2**21  # of fp32 logits a thread works on at a time, on a CPU


class Options(NamedTuple):
    """What bends the loss of a row."""

    label_smoothing: float
    z_loss: float


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
        ctx.wants = ctx.needs_input_grad[:2]
        at_once = reduction != "none" and any(ctx.wants)
        dx, dw = _empty(x, weight, ctx.wants) if at_once else (None, None)
        ctx.options, ctx.reduction, ctx.weight_dtype = Options(label_smoothing, z_loss), reduction, weight.dtype
        losses = _walk(x, w, targets, valid, ctx.options, None, dx, dw)
        if at_once:
            ctx.save_for_backward(valid, dx, dw)
        else:
            ctx.save_for_backward(valid, x, w, targets)
        return reduce(losses, valid, reduction)

    @staticmethod
    @first_derivative_only("linear-cross-entropy")
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        valid, *kept = ctx.saved_tensors
        scale, share = slopes_of_losses(grad_output, valid, ctx.reduction)
        if share is None:
            dx, dw = kept
        else:
            x, w, targets = kept
            dx, dw = _empty(x, w, ctx.wants)
            _walk(x, w, targets, valid, ctx.options, share, dx, dw)
        of_x = None if dx is None else scaled(dx, scale, dx.dtype)
        of_weight = None if dw is None else scaled(dw, scale, ctx.weight_dtype)
        return of_x, of_weight, None, None, None, None, None


def _empty(x: Tensor, weight: Tensor, wants: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """Where dx (N, C) goes and dW (V, C) is summed, in fp32 or wider; None for what is not wanted."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    dx = torch.empty_like(x) if wants[0] else None
    dw = (torch.empty_like if len(x) else torch.zeros_like)(weight, dtype=wide) if wants[1] else None
    return dx, dw


def _walk(
    x: Tensor,
    w: Tensor,
    targets: Tensor,
    valid: Tensor,
    options: Options,
    share: Tensor | None,
    dx: Tensor | None,
    dw: Tensor | None,
) -> Tensor:
    """The (N,) losses; and, where there is a place for them, the gradients of Σ share·loss. w has the products' dtype."""
    losses = x.new_empty(x.size(0), dtype=torch.float32)
    rows = chunk_rows(w.size(0), w.element_size())
    wanted = dx is not None or dw is not None
    for start in range(0, x.size(0), rows):
        part = slice(start, start + rows)
        part_share = None if share is None else share[part, None]
        losses[part], slopes, x_part = _chunk(x[part], w, targets[part], valid[part, None], options, part_share, wanted)
        if dx is not None:
            dx[part] = (slopes @ w).mul_(valid[part, None])
        if dw is not None:
            _accumulate(dw, slopes, x_part, first=start == 0)
        del slopes  # or the next chunk's logits would be made beside them
    return losses


def _chunk(
    x: Tensor, w: Tensor, targets: Tensor, keep: Tensor, options: Options, share: Tensor | None, slopes: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The (n,) losses of some rows, their (n, V) logits, or with `slopes` their gradient, and x in the products' dtype."""
    x = (x * keep).to(w.dtype)  # (n, C); ignored rows give dw nothing
    index = targets[:, None].masked_fill(~keep, 0)
    logits = x @ w.T  # (n, V)
    return _losses_(logits, index, options, share, slopes) * keep[:, 0], logits, x


def chunk_rows(n_ids: int, itemsize: int) -> int:
    """Rows whose logits of that many bytes a number exist at once; of many rows a multiple of 64, as matrix products like."""
    rows = max(1, CHUNK_BYTES // (itemsize * n_ids))
    return rows if rows < 64 else rows - rows % 64


def _losses_(logits: Tensor, index: Tensor, options: Options, share: Tensor | None, slopes: bool) -> Tensor:
    """The (n,) losses of (n, V) logits, targets (n, 1); with `slopes`, d share·loss / d logits is written over the logits."""
    losses = torch.empty(logits.size(0), dtype=torch.float32, device=logits.device)
    rows = group_rows(logits.size(1), logits.device)
    scratch = torch.empty((min(rows, logits.size(0)), logits.size(1)), dtype=torch.float32, device=logits.device)
    for start in range(0, logits.size(0), rows):
        part = slice(start, start + rows)
        group, target = logits[part], index[part]
        scores = group.float()  # (g, V)
        p = torch.softmax(scores, -1, out=scratch[: len(group)])
        lse = (
            scores.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()
        )  # exact: the largest p is 1/Σexp(score - max)
        losses[part] = _losses(scores, lse, target, options)[:, 0]
        if slopes:
            group.copy_(_slopes_(p, lse, target, options, None if share is None else share[part]))
    return losses


def group_rows(n_ids: int, device: torch.device) -> int:
    """Rows to go through at a time: few enough for the caches of a CPU's threads, and all of a chunk on a GPU."""
    if device.type != "cpu":
        return sys.maxsize
    return max(1, CACHE_BYTES // (4 * n_ids)) * torch.get_num_threads()


def _losses(scores: Tensor, lse: Tensor, target: Tensor, options: Options) -> Tensor:
    """(g, V) scores, their (g, 1) lse, (g, 1) targets -> (g, 1) losses."""
    losses = lse - scores.gather(1, target)
    if options.label_smoothing:
        uniform = lse - scores.mean(-1, keepdim=True)
        losses = torch.lerp(losses, uniform, options.label_smoothing)
    return losses + options.z_loss * lse.square()


def _slopes_(p: Tensor, lse: Tensor, target: Tensor, options: Options, share: Tensor | None) -> Tensor:
    """share · d loss / d logits = share · ((1 + 2·z·lse)·p - smoothed target), written over p (g, V)."""
    if options.z_loss:
        p *= 1 + 2 * options.z_loss * lse
    if options.label_smoothing:
        p -= options.label_smoothing / p.size(-1)
    p.scatter_add_(1, target, p.new_full((1, 1), options.label_smoothing - 1).expand_as(target))
    return p if share is None else p.mul_(share)


def _accumulate(dw: Tensor, slopes: Tensor, x: Tensor, *, first: bool) -> None:
    """dw (V, C) += slopesᵀ x, summed in fp32 or wider; the first chunk's is written over what is there."""
    if slopes.dtype == dw.dtype:
        dw.addmm_(slopes.T, x, beta=0 if first else 1)
    elif first:
        dw.copy_(slopes.T @ x)
    else:
        dw += slopes.T @ x

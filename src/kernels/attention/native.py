"""Causal attention by torch: SDPA, and for training on a CPU matrix products over blocks of queries.

torch's CPU backward of SDPA is several times slower than the matrix products it stands for, and with dropout SDPA has no
fused CPU kernel at all (measured: docs/decisions/0002-cpu-attention.md). So there a block of queries meets the keys up to
its own end, which skips most of the masked half, and the weights are kept for the backward pass: B·H·T² of them at most.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from smallgpt.domain import ops
from smallgpt.domain.dropout import draw_kept, kept_of
from smallgpt.domain.gradients import first_derivative_only
from smallgpt.domain.ops import cached_attention

__all__ = ["cached_attention", "causal_attention"]

QUERY_BLOCK = 128


def causal_attention(qkv: Tensor, dropout: float) -> Tensor:
    """See domain.ops.CausalAttention: (B, T, 3, H, D) -> (B, T, H, D)."""
    if qkv.device.type == "cpu" and qkv.requires_grad and torch.is_grad_enabled():
        y: Tensor = _BlockwiseAttention.apply(qkv, dropout)  # type: ignore[no-untyped-call]
        return y
    return ops.causal_attention(qkv, dropout)


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, dropout: float) -> Tensor:
        B, T, _, H, D = qkv.shape
        q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, B * H, T, D)  # contiguous, as bmm wants it
        q = q / sqrt(D)
        y = torch.empty_like(q)
        saved = []
        for start, end in _blocks(T):
            scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2))  # (BH, n, end)
            scores[:, :, start:] += _future(end - start, scores)
            p = scores.softmax(-1)
            keep = draw_kept(p, dropout) if dropout else None
            y[:, start:end] = torch.bmm(_dropped(p, keep), v[:, :end])
            saved += [p, keep]
        if dropout:
            y /= 1 - dropout
        ctx.save_for_backward(q, k, v, *saved)
        ctx.heads, ctx.dropout = H, dropout
        return y.view(B, H, T, D).transpose(1, 2)

    @staticmethod
    @first_derivative_only("attention")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        q, k, v, *saved = ctx.saved_tensors
        BH, T, D = q.shape
        B, H = BH // ctx.heads, ctx.heads
        dy = dy.transpose(1, 2).reshape(BH, T, D)
        if ctx.dropout:
            dy = dy / (1 - ctx.dropout)
        dqkv = q.new_zeros(3, BH, T, D)
        dq, dk, dv = dqkv
        for (start, end), p, keep in zip(_blocks(T), saved[::2], saved[1::2], strict=True):
            block = dy[:, start:end]
            dp = _dropped(torch.bmm(block, v[:, :end].transpose(1, 2)), keep)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)  # p ∘ (dp - rowsum(p ∘ dp))
            del dp  # as large as all weights of the block
            dq[:, start:end] = torch.bmm(ds, k[:, :end])
            dk[:, :end] += torch.bmm(ds.transpose(1, 2), q[:, start:end])
            dv[:, :end] += torch.bmm(_dropped(p, keep).transpose(1, 2), block)
        dq /= sqrt(D)
        return dqkv.view(3, B, H, T, D).permute(1, 3, 0, 2, 4), None


def _blocks(T: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERY_BLOCK, T)) for start in range(0, T, QUERY_BLOCK)]


def _future(n: int, like: Tensor) -> Tensor:
    """(n, n): -inf above the diagonal, 0 elsewhere."""
    return torch.full((n, n), -torch.inf, dtype=like.dtype, device=like.device).triu_(1)


def _dropped(x: Tensor, keep: Tensor | None) -> Tensor:
    """x where it is kept, 0 elsewhere; not scaled by 1/(1 - dropout)."""
    return x if keep is None else kept_of(x, keep)

"""Causal attention as its formula: the whole (T, S) score matrix, in fp32 or wider, autocast or not.

For reading, and as the oracle of tests.
"""

from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.domain.ops import cache_mask


def causal_attention(qkv: Tensor, dropout: float) -> Tensor:
    """See domain.ops.CausalAttention: (B, T, 3, H, D) -> (B, T, H, D)."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
    past = torch.ones(q.size(2), q.size(2), dtype=torch.bool, device=q.device).tril()
    return _attend(q, k, v, past, dropout).transpose(1, 2)


def cached_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor | None) -> Tensor:
    """See domain.ops.CachedAttention: q (B, T, H, D), caches (B, S, H, D) -> (B, T, H, D)."""
    if lengths is None:
        lengths = torch.full((len(q),), k_cache.size(1), device=q.device)
    mask = cache_mask(q.size(1), k_cache.size(1), lengths)  # (B, 1, T, S)
    q, k, v = (x.transpose(1, 2) for x in (q, k_cache, v_cache))
    return _attend(q, k, v, mask, 0.0).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, dropout: float) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):  # it would compute the products in 16 bits
        scores = q.to(wide) @ k.to(wide).transpose(-2, -1) / sqrt(q.size(-1))  # (B, H, T, S)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        return (F.dropout(weights, dropout) @ v.to(wide)).to(q.dtype)

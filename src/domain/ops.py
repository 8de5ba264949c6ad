"""What the model needs done, as plain functions, so that each can be swapped for a faster one.

Shapes: B sequences, T tokens, H heads, D head size, C = H*D width, N = B*T rows, V vocabulary, S cache slots.
"""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class CausalAttention(Protocol):
    """softmax(q kᵀ / √D, with the future masked) v, on the packed projection."""

    def __call__(self, qkv: Tensor, dropout: float) -> Tensor:
        """(B, T, 3, H, D), probability of dropping an attention weight -> (B, T, H, D).

        What stays is scaled by 1/(1 - dropout). Which weights are dropped follows from the state of torch's generator for
        qkv's device and from qkv's shape alone.
        """


class CachedAttention(Protocol):
    """The same for new queries against keys and values kept from before."""

    def __call__(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor | None) -> Tensor:
        """q (B, T, H, D), caches (B, S, H, D), lengths (B,) int64 -> (B, T, H, D).

        lengths[b] counts the valid slots of row b, the T newest of which belong to q: query t sees the
        slots below lengths[b] - T + t + 1. None stands for S in every row, when T is 1: nothing is masked.
        """


class LayerNormOp(Protocol):
    """Normalise rows to mean 0 and variance 1, then scale and shift."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """x (..., C), weight and bias (C,) -> (..., C)."""


class AddLayerNorm(Protocol):
    """Add a branch's output to the residual stream, then normalise the sum: one pass over memory when fused."""

    def __call__(
        self, residual: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """residual and delta (..., C) -> (residual + delta, its layer norm), both (..., C)."""


Reduction = Literal["mean", "sum", "none"]


class LinearCrossEntropy(Protocol):
    """Cross-entropy of softmax(x weightᵀ) without keeping the (N, V) logits, where the backend can avoid it."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        z_loss: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """x (N, C), weight (V, C), targets (N,) int64 -> fp32: the mean or sum over rows whose target is not ignored.

        "none" gives the (N,) losses themselves, 0 where ignored. Smoothing ε mixes the target with the uniform
        distribution: (1-ε)·nll + ε·mean over the vocabulary. z_loss·lse² is added to a row's loss, lse being the
        natural logarithm of the softmax's denominator (PaLM's z-loss, arXiv 2204.02311, section 5).
        With every target ignored the mean is 0/0 = nan, as in torch, and the gradients are 0.

        The reader owns the gradient of `weight`: the tied embedding's is added to it in place (domain/tying.py), so a backward
        pass must not hand out a tensor that it keeps for a second one (retain_graph).
        """


class Ops(NamedTuple):
    """One implementation of each operation."""

    causal_attention: CausalAttention
    cached_attention: CachedAttention
    layer_norm: LayerNormOp
    add_layer_norm: AddLayerNorm
    linear_cross_entropy: LinearCrossEntropy


def causal_attention(qkv: Tensor, dropout: float) -> Tensor:
    """CausalAttention by torch's scaled_dot_product_attention."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).transpose(1, 2)


def cached_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor | None) -> Tensor:
    """CachedAttention by torch's scaled_dot_product_attention under an explicit mask."""
    mask = cache_mask(q.size(1), k_cache.size(1), lengths) if lengths is not None else None  # (B, 1, T, S)
    q, k, v = (x.transpose(1, 2) for x in (q, k_cache, v_cache))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def cache_mask(n_queries: int, n_slots: int, lengths: Tensor) -> Tensor:
    """Which slots each query may see: (B, 1, T, S) bool. See CachedAttention."""
    slots = torch.arange(n_slots, device=lengths.device)
    last_seen = lengths[:, None] - n_queries + torch.arange(n_queries, device=lengths.device)  # (B, T)
    return (slots <= last_seen[:, :, None])[:, None]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNormOp by torch."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def add_layer_norm(
    residual: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """AddLayerNorm by torch."""
    residual = residual + delta
    return residual, layer_norm(residual, weight, bias, eps)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """LinearCrossEntropy by torch, logits and all."""
    logits = F.linear(x, weight).float()
    loss = F.cross_entropy(
        logits, targets, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction
    )
    if z_loss == 0:
        return loss
    valid = targets != ignore_index
    penalties = (z_loss * logits.logsumexp(-1).square()).masked_fill(~valid, 0)  # (N,)
    if reduction == "none":
        return loss + penalties
    return loss + penalties.sum() / (valid.sum() if reduction == "mean" else 1)


TORCH_OPS = Ops(causal_attention, cached_attention, layer_norm, add_layer_norm, linear_cross_entropy)

"""Layer norm as its formula, with statistics in fp32 or wider. For reading, and as the oracle of tests."""

import torch
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See domain.ops.LayerNormOp: x (..., C) -> (..., C), in x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)  # biased, and of the centred values: no cancellation
    y = centred * torch.rsqrt(variance + eps) * weight
    return (y if bias is None else y + bias).to(x.dtype)


def add_layer_norm(
    residual: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See domain.ops.AddLayerNorm: (..., C) twice -> (sum, its layer norm)."""
    residual = residual + delta
    return residual, layer_norm(residual, weight, bias, eps)

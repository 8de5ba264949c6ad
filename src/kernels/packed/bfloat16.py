"""x Wᵀ + b with W and x rounded to bfloat16: half the bytes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.kernels.packed import onednn


class Matrix:
    """Sums are float32 inside, and rounded to bfloat16 once."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight (V, C) and bias (V,), both float32."""
        self.is_packed = onednn.is_available(torch.bfloat16)
        self.weight = onednn.pack(weight.bfloat16()) if self.is_packed else weight.bfloat16()
        self.bias = bias.bfloat16() if bias is not None else None

    def __call__(self, x: Tensor, *, gelu: str | None = None) -> Tensor:
        """x (B, T, C) bfloat16 -> (B, T, V) bfloat16, through a GELU if asked: exact ("none") or "tanh"."""
        if self.is_packed:
            return onednn.linear(x, self.weight, self.bias, gelu=gelu)
        y = F.linear(x, self.weight, self.bias)
        return y if gelu is None else F.gelu(y, approximate=gelu)

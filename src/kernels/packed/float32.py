"""x Wᵀ + b in float32, for few rows on a CPU."""

from math import pi, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.kernels.packed import onednn

PARTS = 2
FEW, MANY = 2, 64


def few_rows_gelu(x: Tensor, approximate: str) -> Tensor:
    """x·Φ(x), or with "tanh" its approximation (arXiv 1606.08415, section 2).

    torch's own goes through oneDNN, which takes longer than the arithmetic of a single row.
    """
    if approximate == "tanh":
        return torch.tanh((x + 0.044715 * x**3).mul_(sqrt(2 / pi))).add_(1).mul_(0.5).mul_(x)
    return torch.erf(x * sqrt(0.5)).add_(1).mul_(0.5).mul_(x)


class Matrix:
    """nn.Linear's result, by whichever of three ways reads W fastest for so many rows.

    One or two rows: the halves of W as a batch of two products, which takes MKL past its slower
    matrix-vector product. Up to 64 rows: oneDNN with W packed once; torch's own packs it in every call.
    More: torch's own.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight (V, C) and bias (V,), both float32."""
        self.weight, self.bias = weight, bias
        self.parts = PARTS if len(weight) % PARTS == 0 else 1
        self.halves = weight.view(self.parts, len(weight) // self.parts, -1)
        self.packed: Tensor | None = None

    def __call__(self, x: Tensor, *, gelu: str | None = None) -> Tensor:
        """x (B, T, C) float32 -> (B, T, V), through a GELU if asked: exact ("none") or "tanh"."""
        rows = x.size(0) * x.size(1)
        if rows <= FEW:
            y = self._by_halves(x)
            return y if gelu is None else few_rows_gelu(y, gelu)
        if rows > MANY or not onednn.is_available(torch.float32):
            y = F.linear(x, self.weight, self.bias)
            return y if gelu is None else F.gelu(y, approximate=gelu)
        if self.packed is None:
            self.packed = onednn.pack(self.weight)
        return onednn.linear(x, self.packed, self.bias, gelu=gelu)

    def _by_halves(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        y = torch.bmm(self.halves, x.reshape(B * T, C).t().expand(self.parts, C, B * T))  # (parts, V / parts, BT)
        if B * T > 1:
            y = y.view(-1, B * T).t()
        y = y.reshape(B, T, -1)
        return y if self.bias is None else y.add_(self.bias)

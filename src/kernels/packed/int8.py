"""x Wᵀ + b with the rows of W rounded to whole numbers from -127 to 127: a quarter of the bytes."""

import torch
from torch import Tensor

from smallgpt.kernels.packed.bfloat16 import Matrix as Bfloat16Matrix
from smallgpt.kernels.packed.float32 import few_rows_gelu

LARGEST = 127
FEW = 2
WHOLE = 32  # columns: torch's product reads them in whole vectors, past the end of W where they do not fit


class Matrix:
    """W = scale · integers, with one scale a row; x is rounded to bfloat16.

    Up to two rows of x, torch's product of bfloat16 rows with 8-bit weights: its time grows with every row. From three rows
    on, scale · integers is multiplied as bfloat16, and kept so beside the integers from the first time on: the same numbers.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight (V, C) and bias (V,), both float32."""
        self.scale, self.integers = quantise(weight)
        self.bias = bias
        self.many_rows: Bfloat16Matrix | None = None

    def __call__(self, x: Tensor, *, gelu: str | None = None) -> Tensor:
        """x (B, T, C) bfloat16 -> (B, T, V) bfloat16, through a GELU if asked: exact ("none") or "tanh"."""
        B, T, C = x.shape
        if B * T > FEW or C % WHOLE:
            if self.many_rows is None:
                self.many_rows = Bfloat16Matrix(self.integers * self.scale.float()[:, None], self.bias)
            return self.many_rows(x, gelu=gelu)
        y = torch._weight_int8pack_mm(x.reshape(B * T, C), self.integers, self.scale).view(B, T, -1)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype) if gelu is None else few_rows_gelu(y, gelu).bfloat16()


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (V, C) float32 -> scales (V,) bfloat16 and integers (V, C) int8 with weight ≈ scale · integers.

    A scale is a power of two, the smallest with which 127 is not passed, so that scale · integers are bfloat16 numbers
    without rounding: both ways of multiplying have the same weights.
    """
    exponent = (weight.abs().amax(1) / LARGEST).clamp_min(1e-30).log2().ceil()
    scale = exponent.exp2()
    return scale.bfloat16(), (weight / scale[:, None]).round().to(torch.int8)

"""The least work of each operation: FLOPs, and bytes read and written when every operand and result moves once.

B sequences, T tokens, H heads, D head size, M or N rows, C width, V vocabulary. A multiply-add is two FLOPs.
"""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["forward", "backward", "both"]
Bound = Literal["flops", "bytes"]
"""What an operation is limited by: arithmetic, or memory."""


@dataclass(frozen=True)
class Work:
    """What has to be done at least, however it is done."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """FLOPs for each byte moved: the horizontal axis of a roofline (Williams, Waterman, Patterson 2009)."""
        return self.flops / self.bytes


def attention_flops(B: int, T: int, H: int, D: int, direction: Direction) -> float:
    """Of causal attention: two products forward, five backward, half of each being masked.

    The convention of FlashAttention-2's benchmarks (Dao 2023, section 4.1): 4·T²·D·H, halved for the mask, and 2.5 times
    that backward, where the scores are made again.
    """
    forward = 2.0 * B * H * T * T * D
    return forward * {"forward": 1.0, "backward": 2.5, "both": 3.5}[direction]


def attention_bytes(B: int, T: int, H: int, D: int, itemsize: int, direction: Direction) -> float:
    """Every (B, T, H, D) tensor once: q, k, v, y forward; q, k, v, y, dy, dq, dk, dv backward. Nothing of T·T.

    The logarithm of each row's denominator is left out: under 1 % at head size 64.
    """
    return float(B * T * H * D * itemsize * {"forward": 4, "backward": 8, "both": 12}[direction])


def linear_cross_entropy_flops(N: int, C: int, V: int, direction: Direction) -> float:
    """One product forward (logits), two backward (dX, dW); making the logits again is not counted as useful."""
    return 2.0 * N * C * V * {"forward": 1, "backward": 2, "both": 3}[direction]


def linear_cross_entropy_bytes(N: int, C: int, V: int, itemsize: int, direction: Direction) -> float:
    """x (N, C) and weight (V, C) read forward; both read and their gradients written backward. Nothing of N·V."""
    return float((N + V) * C * itemsize * {"forward": 1, "backward": 2, "both": 3}[direction])


def layer_norm_flops(M: int, C: int, direction: Direction, *, add: bool = False) -> float:
    """Of the formula, an element: forward mean 1, variance 3, normalising 1, weight and bias 2; backward 13.

    Backward: x̂ 2, w·dy 1, the two sums of a row 3, dx 4, dw 2, db 1. The residual's addition is 1 more in either.
    """
    forward, backward = (8, 14) if add else (7, 13)
    return float(M * C * {"forward": forward, "backward": backward, "both": forward + backward}[direction])


def layer_norm_bytes(M: int, C: int, itemsize: int, direction: Direction, *, add: bool = False) -> float:
    """Every (M, C) tensor read or written once: x, y forward; dy, x, dx backward.

    With the residual added: residual, delta, sum, y forward; dy, dsum, sum, and one dx for both branches backward. Weight,
    bias, and the two statistics of a row are left out: below 2 % from width 256 and 1,000 rows on.
    """
    forward, backward = (4, 4) if add else (2, 3)
    return float(M * C * itemsize * {"forward": forward, "backward": backward, "both": forward + backward}[direction])

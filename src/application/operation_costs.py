"""The least work of each operation: FLOPs where products decide, bytes moved where memory does.

B sequences, T tokens, H heads, D head size, M or N rows, C width, V vocabulary. A multiply-add is two FLOPs.
"""

from typing import Literal

Direction = Literal["forward", "backward", "both"]


def attention_flops(B: int, T: int, H: int, D: int, direction: Direction) -> float:
    """Of causal attention: two products forward, five backward, half of each being masked.

    The convention of FlashAttention-2's benchmarks (Dao 2023, section 4.1): 4·T²·D·H, halved for the mask, and 2.5 times
    that backward, where the scores are made again.
    """
    forward = 2.0 * B * H * T * T * D
    return forward * {"forward": 1.0, "backward": 2.5, "both": 3.5}[direction]


def linear_cross_entropy_flops(N: int, C: int, V: int, direction: Direction) -> float:
    """One product forward (logits), two backward (dX, dW); making the logits again is not counted as useful."""
    return 2.0 * N * C * V * {"forward": 1, "backward": 2, "both": 3}[direction]


def layer_norm_bytes(M: int, C: int, itemsize: int, direction: Direction, *, add: bool = False) -> float:
    """Every (M, C) tensor read or written once: x, y forward; dy, x, dx backward.

    With the residual added: residual, delta, sum, y forward; dy, dsum, sum, and one dx for both branches backward. Weight,
    bias, and the two statistics of a row are left out: below 2 % from width 256 and 1,000 rows on.
    """
    forward, backward = (4, 4) if add else (2, 3)
    return float(M * C * itemsize * {"forward": forward, "backward": backward, "both": forward + backward}[direction])

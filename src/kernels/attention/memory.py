"""What each implementation of causal attention keeps and needs, in bytes: for the plan of a run's memory.

P stands for the B·H·T² attention weights, U for the B·T·C elements of a hidden state. What the output projection keeps
as its own input is not counted.
"""

import torch

from smallgpt.kernels.attention.fused import fits_one_tile
from smallgpt.kernels.attention.native import QUERY_BLOCK
from smallgpt.kernels.launching import architecture

WIDE = 4  # bytes of a number in the formula, which computes in fp32 under autocast too


def kept_bytes(
    backend: str, device: torch.device, dtype: torch.dtype, B: int, T: int, H: int, D: int, dropout: float
) -> int:
    """Kept of each layer's attention from its forward to its backward pass."""
    e, U = dtype.itemsize, B * T * H * D
    statistics = 4 * B * H * T
    if backend == "reference":
        return 3 * U * WIDE + _weights_of_the_formula(device, B * H * T * T, dropout) + T * T  # bool mask
    if backend == "torch" and device.type == "cpu":
        P = B * H * sum(_visible(T))
        return 4 * U * e + P * (e + 1 if dropout else e)  # which weights stay, a byte each
    if backend == "triton" and fits_one_tile(architecture(device), T, D, 8 * e, dropout > 0):
        return 3 * U * e
    return 3 * U * e + statistics


def backward_bytes(
    backend: str, device: torch.device, dtype: torch.dtype, B: int, T: int, H: int, D: int, dropout: float
) -> int:
    """Needed besides, at most, while the backward pass of one layer's attention turns dy into dqkv."""
    e, U = dtype.itemsize, B * T * H * D
    if backend == "reference":
        return (4 * U + B * H * T * T) * WIDE
    if backend == "torch" and device.type == "cpu":
        P = B * H * max(_visible(T))
        return 5 * U * e + P * e * (3 if dropout else 2)
    if backend == "torch":
        return 6 * U * e + 4 * U  # dq, dk, dv, stacked to dqkv; flash sums dq in fp32
    return 3 * U * e


def _visible(T: int) -> list[int]:
    """How many weights a head has for each block of queries: those queries times the keys up to the block's end."""
    starts = range(0, T, QUERY_BLOCK)
    return [(min(start + QUERY_BLOCK, T) - start) * min(start + QUERY_BLOCK, T) for start in starts]


def _weights_of_the_formula(device: torch.device, P: int, dropout: float) -> int:
    """The softmax and, with dropout, its noise, on a GPU in bytes, and their product."""
    noise = P * WIDE if device.type == "cpu" else P
    return 2 * P * WIDE + noise if dropout else P * WIDE

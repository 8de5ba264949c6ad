"""What each implementation of linear + cross-entropy needs and keeps, in bytes: for the plan of a run's memory.

For N rows of width C against V ids, the mean loss, x in fp32 (or `x_itemsize`) and weights in fp32; the operands themselves
are not counted.
"""

from dataclasses import dataclass

import torch

from smallgpt.kernels.linear_cross_entropy import chunked, flash, fused, native


@dataclass(frozen=True)
class LossBytes:
    """Of one forward and backward pass."""

    forward: int
    """At most at once while the forward pass runs, what it keeps included."""
    backward: int
    """At most at once while the backward pass runs, both gradients and what was kept included."""


def loss_bytes(
    backend: str, device: torch.device, dtype: torch.dtype, N: int, V: int, C: int, x_itemsize: int
) -> LossBytes:
    """`dtype` is that of the products."""
    e = dtype.itemsize
    gradients = N * C * x_itemsize + 4 * V * C
    if backend == "reference":
        logits = N * V * e
        cast = V * C * e if e < 4 else 0  # of the weight, kept for dx; as large is dW before it becomes fp32
        return LossBytes(cast + logits + 4 * N * V, cast + max(5 * logits, 2 * logits + gradients + cast))
    if backend == "torch":
        kept = N * C * x_itemsize + 4 * V * C
        return LossBytes(kept + _native_workspace(e, N, V, C), kept + gradients)
    if backend == "triton-flash" or (backend == "triton" and fused.prefers_flash(device, V, C, 8 * e)):
        cast = (N + V) * C * e if e < 4 else 0
        kept = cast + N * C * e + 3 * 4 * N
        partial = min(flash.PARTIAL_BYTES, flash.SPLITS * N * C * 4)
        return LossBytes(kept + partial, kept + gradients)
    kept = 4 * N * C + 4 * V * C
    cast = (N + V) * C * e if e < 4 else 0
    return LossBytes(kept + cast + min(chunked.CHUNK_BYTES, N * V * e), kept + gradients)


def _native_workspace(e: int, N: int, V: int, C: int) -> int:
    """A chunk's logits, their fp32 log-probabilities and slopes, while names still hold the chunk before."""
    rows = min(N, max(1, native.CHUNK_BYTES // (4 * V)))
    others = min(rows, N - rows)  # of the chunk after the first, if there is one
    if e == 4:
        return 4 * V * (2 * rows + others) + 2 * 4 * rows * C
    last = rows * V * (e + 4) if others else 0  # log-probabilities and slopes
    softmax = (others or rows) * V * (e + 2 * 4) + last  # torch converts the logits before their softmax
    sums = rows * V * (2 * e + 4) + V * C * (e + 4)  # the product, and its fp32 copy that is added
    return V * C * e + max(softmax, sums) + rows * C * (4 + e)

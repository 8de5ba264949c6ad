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
        logits = 4 * N * V  # in fp32, under autocast too
        return LossBytes(2 * logits, max(5 * logits, logits + gradients))
    if backend == "torch":
        kept = gradients  # made in the forward pass
        return LossBytes(kept + _native_workspace(device, e, N, V, C), kept + gradients)
    if backend == "triton-flash" or (backend == "triton" and fused.prefers_flash(device, V, C, 8 * e)):
        cast = (N + V) * C * e if e < 4 else 0
        kept = cast + N * C * e + 3 * 4 * N
        partial = min(flash.PARTIAL_BYTES, flash.SPLITS * N * C * 4)
        return LossBytes(kept + partial, kept + gradients)
    kept = 4 * N * C + 4 * V * C
    cast = (N + V) * C * e if e < 4 else 0
    return LossBytes(kept + cast + min(chunked.CHUNK_BYTES, N * V * e), kept + gradients)


def _native_workspace(device: torch.device, e: int, N: int, V: int, C: int) -> int:
    """The weight in the products' dtype, a chunk's logits, and what goes with them: fp32 rows of a softmax, or a part of dW."""
    rows = min(N, native.chunk_rows(V, e))
    group = min(rows, native.group_rows(V, device))
    scores = 4 * V * group if e < 4 else 0  # fp32 logits need no copy
    softmax = scores + 4 * V * group
    product = V * C * e if e < 4 or rows < N else 0  # fp32 sums in place
    return (V * C * e if e < 4 else 0) + rows * V * e + max(softmax, product) + rows * C * (4 + e)

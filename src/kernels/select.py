"""Which implementation computes each operation: an explicit wish is met or refused, `auto` takes the first that proves right.

Nothing is decided by an import: every candidate is launched on the device and compared with the formula. `auto` tries them in
the order in which expectations.py, from published figures, expects them to be fast.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from smallgpt.domain.errors import KernelError
from smallgpt.domain.ops import Ops
from smallgpt.kernels import proof
from smallgpt.kernels.attention import fused as attention_fused
from smallgpt.kernels.attention import native as attention_native
from smallgpt.kernels.attention import reference as attention_reference
from smallgpt.kernels.expectations import Shape, preference
from smallgpt.kernels.layer_norm import fused as layer_norm_fused
from smallgpt.kernels.layer_norm import native as layer_norm_native
from smallgpt.kernels.layer_norm import reference as layer_norm_reference
from smallgpt.kernels.linear_cross_entropy import fused as linear_cross_entropy_fused
from smallgpt.kernels.linear_cross_entropy import native as linear_cross_entropy_native
from smallgpt.kernels.linear_cross_entropy import reference as linear_cross_entropy_reference

OPERATIONS = ("attention", "layer_norm", "linear_cross_entropy")

Backend = Literal["auto", "torch", "reference", "triton"]
LossBackend = Literal["auto", "torch", "reference", "triton", "triton-chunked", "triton-flash"]

BACKENDS: dict[str, Ops] = {
    "torch": Ops(
        causal_attention=attention_native.causal_attention,
        cached_attention=attention_native.cached_attention,
        layer_norm=layer_norm_native.layer_norm,
        add_layer_norm=layer_norm_native.add_layer_norm,
        linear_cross_entropy=linear_cross_entropy_native.linear_cross_entropy,
    ),
    "reference": Ops(
        causal_attention=attention_reference.causal_attention,
        cached_attention=attention_reference.cached_attention,
        layer_norm=layer_norm_reference.layer_norm,
        add_layer_norm=layer_norm_reference.add_layer_norm,
        linear_cross_entropy=linear_cross_entropy_reference.linear_cross_entropy,
    ),
    "triton": Ops(
        causal_attention=attention_fused.causal_attention,
        cached_attention=attention_fused.cached_attention,
        layer_norm=layer_norm_fused.layer_norm,
        add_layer_norm=layer_norm_fused.add_layer_norm,
        linear_cross_entropy=linear_cross_entropy_fused.linear_cross_entropy,
    ),
}

# The loss alone has two designs of ours; "triton" picks one of them by shape.
LOSS_BACKENDS = BACKENDS | {
    "triton-chunked": BACKENDS["triton"]._replace(
        linear_cross_entropy=linear_cross_entropy_fused.linear_cross_entropy_chunked
    ),
    "triton-flash": BACKENDS["triton"]._replace(
        linear_cross_entropy=linear_cross_entropy_fused.linear_cross_entropy_flash
    ),
}


@dataclass(frozen=True)
class Selection:
    """The operations to use, and per operation the backend's name and why."""

    ops: Ops
    chosen: dict[str, str]
    reasons: dict[str, str]


@dataclass(frozen=True)
class Candidate:
    """One row of `smallgpt kernels list`."""

    operation: str
    backend: str
    available: bool
    reason: str
    chosen: bool


def backends_of(operation: str) -> dict[str, Ops]:
    """Every implementation of an operation, by name."""
    return LOSS_BACKENDS if operation == "linear_cross_entropy" else BACKENDS


def select(
    backend: Backend = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    attention: Backend | None = None,
    layer_norm: Backend | None = None,
    linear_cross_entropy: LossBackend | None = None,
    shape: Shape | None = None,
) -> Selection:
    """Pick an implementation of each operation for products in dtype; a per-operation wish overrides `backend`.

    `shape` is what `auto` expects speed for; without it a small model's. Raises KernelError when an explicitly wished
    one does not run, or runs wrong, on the device; the remedy is for the caller to add.
    """
    own_wishes = {"attention": attention, "layer_norm": layer_norm, "linear_cross_entropy": linear_cross_entropy}
    wishes = {operation: wish or backend for operation, wish in own_wishes.items()}
    device = torch.device(device)
    chosen, reasons = {}, {}
    for operation, wish in wishes.items():
        chosen[operation], reasons[operation] = _choose(operation, wish, device, dtype, shape or Shape())
    return Selection(_bundle(chosen), chosen, reasons)


def candidates(device: torch.device | str, dtype: torch.dtype, shape: Shape | None = None) -> Iterator[Candidate]:
    """Every implementation of every operation, checked on the device, and what `auto` makes of it."""
    device = torch.device(device)
    for operation in OPERATIONS:
        shape = shape or Shape()
        winner, why = _choose(operation, "auto", device, dtype, shape)
        for backend in backends_of(operation):
            result = check(operation, backend, device, dtype, shape.head_size)
            reason = why if backend == winner else result.words
            yield Candidate(operation, backend, result.passed, reason, backend == winner)


def check(operation: str, backend: str, device: torch.device, dtype: torch.dtype, head_size: int = 32) -> proof.Check:
    """Launch one implementation on the device and compare it with the formula in float64."""
    return proof.check(operation, backends_of(operation)[backend], BACKENDS["reference"], device, dtype, head_size)


def _choose(operation: str, wish: str, device: torch.device, dtype: torch.dtype, shape: Shape) -> tuple[str, str]:
    failures: list[str] = []
    order = preference(operation, device, dtype, shape) if wish == "auto" else [(wish, "asked for")]
    for backend, expectation in order:
        result = check(operation, backend, device, dtype, shape.head_size)
        if result.passed:
            return backend, "; ".join([expectation, result.words, *failures])
        failures.append(f"{backend} {result.words}")
    raise KernelError(f"{operation}: {'; '.join(failures)}", operation)


def _bundle(chosen: dict[str, str]) -> Ops:
    attention, layer_norm, loss = (backends_of(operation)[chosen[operation]] for operation in OPERATIONS)
    return Ops(
        causal_attention=attention.causal_attention,
        cached_attention=attention.cached_attention,
        layer_norm=layer_norm.layer_norm,
        add_layer_norm=layer_norm.add_layer_norm,
        linear_cross_entropy=loss.linear_cross_entropy,
    )

"""Which implementation computes each operation: an explicit wish is met or refused, `auto` takes the first that proves right.

Nothing is decided by an import: every candidate is launched on the device and compared with the formula.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from smallgpt.domain.errors import HardwareError
from smallgpt.domain.ops import Ops
from smallgpt.kernels import proof
from smallgpt.kernels.attention import native as attention_native
from smallgpt.kernels.attention import reference as attention_reference
from smallgpt.kernels.layer_norm import native as layer_norm_native
from smallgpt.kernels.layer_norm import reference as layer_norm_reference
from smallgpt.kernels.linear_cross_entropy import native as linear_cross_entropy_native
from smallgpt.kernels.linear_cross_entropy import reference as linear_cross_entropy_reference

OPERATIONS = ("attention", "layer_norm", "linear_cross_entropy")

# In the order in which `auto` tries them.
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
}

Backend = Literal["auto", "torch", "reference"]


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


def select(
    backend: Backend = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    attention: Backend | None = None,
    layer_norm: Backend | None = None,
    linear_cross_entropy: Backend | None = None,
) -> Selection:
    """Pick an implementation of each operation for products in dtype; a per-operation wish overrides `backend`.

    Raises HardwareError when an explicitly wished one does not run, or runs wrong, on the device.
    """
    own_wishes = {"attention": attention, "layer_norm": layer_norm, "linear_cross_entropy": linear_cross_entropy}
    wishes = {operation: wish or backend for operation, wish in own_wishes.items()}
    device = torch.device(device)
    chosen, reasons = {}, {}
    for operation, wish in wishes.items():
        chosen[operation], reasons[operation] = _choose(operation, wish, device, dtype)
    return Selection(_bundle(chosen), chosen, reasons)


def candidates(device: torch.device | str, dtype: torch.dtype) -> Iterator[Candidate]:
    """Every implementation of every operation, checked on the device, and what `auto` makes of it."""
    device = torch.device(device)
    for operation in OPERATIONS:
        winner, _ = _choose(operation, "auto", device, dtype)
        for backend, ops in BACKENDS.items():
            result = proof.check(operation, ops, BACKENDS["reference"], device, dtype)
            yield Candidate(operation, backend, result.passed, result.words, backend == winner)


def _choose(operation: str, wish: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    failures: list[str] = []
    for backend in BACKENDS if wish == "auto" else (wish,):
        result = proof.check(operation, BACKENDS[backend], BACKENDS["reference"], device, dtype)
        if result.passed:
            asked = "asked for; " if wish != "auto" else ""
            return backend, "; ".join([asked + result.words, *failures])
        failures.append(f"{backend} {result.words}")
    raise HardwareError(
        f"{operation}: {'; '.join(failures)}.\nUse --kernels.{operation.replace('_', '-')} auto, or another --training.device."
    )


def _bundle(chosen: dict[str, str]) -> Ops:
    attention, layer_norm, loss = (BACKENDS[chosen[operation]] for operation in OPERATIONS)
    return Ops(
        causal_attention=attention.causal_attention,
        cached_attention=attention.cached_attention,
        layer_norm=layer_norm.layer_norm,
        add_layer_norm=layer_norm.add_layer_norm,
        linear_cross_entropy=loss.linear_cross_entropy,
    )

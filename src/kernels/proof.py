"""Is an implementation right on this device? Launch it on a small odd shape and compare with the formula in float64."""

from dataclasses import dataclass
from math import isnan, nan

import torch
from torch import Tensor

from smallgpt.domain.errors import HardwareError
from smallgpt.domain.ops import Ops
from smallgpt.kernels.proof_cases import CASES, Trial

# Largest ‖difference‖/‖reference‖ of an output or gradient: a few times the dtype's rounding (2⁻²⁴, 2⁻¹¹, 2⁻⁸).
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Check:
    """The outcome of launching one operation."""

    passed: bool
    words: str
    """What happened, for people: the error met, or the failure."""
    error: float | None
    """The largest relative error met; None where nothing ran."""
    available: bool = True
    """False where it says itself that this device or dtype is not for it."""


def check(
    operation: str, ops: Ops, oracle: Ops, device: torch.device, dtype: torch.dtype, head_size: int = 32
) -> Check:
    """Run forward and backward of `operation` ("attention", "layer_norm", "linear_cross_entropy") and of its oracle.

    Attention's dropout is compared under the mask that it drew, and with 16-bit dtypes the loss under autocast too.
    Draws nothing from torch's generators. `head_size` is attention's.
    """
    trial = Trial(ops, oracle, device, dtype, head_size, torch.Generator().manual_seed(0))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            pairs = CASES[operation](trial)
        except HardwareError as error:
            why = first_line(error).removeprefix(f"{operation}: ")
            return Check(False, f"does not run on {device}: {why}", None, available=False)
        except Exception as error:  # Triton's, torch's and the driver's have no common base
            return Check(False, f"failed to launch on {device}: {first_line(error)}", None)
    errors = [distance(found, expected) for found, expected in pairs]
    worst = nan if any(map(isnan, errors)) else max(errors)  # max() would lose a nan that is not the first
    verdict = f"launched on {device}; largest error {worst:.0e} of {TOLERANCE[dtype]:.0e} allowed"
    return Check(worst <= TOLERANCE[dtype], verdict, worst)  # nan compares false: not passed


def first_line(error: Exception) -> str:
    """What an error says first, or its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def distance(result: Tensor, expected: Tensor) -> float:
    """‖result - expected‖ ÷ ‖expected‖, or ‖result‖ where 0 is expected; `expected` in float64 on the CPU."""
    expected = expected.detach()
    difference = result.detach().cpu().double() - expected
    return float(difference.norm()) / (float(expected.norm()) or 1.0)

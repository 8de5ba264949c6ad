"""All that a resumed run needs beside its configuration."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TrainingState:
    """A run between two optimizer steps."""

    step: int
    """Optimizer steps done."""
    weights: dict[str, Tensor]
    """Model parameters by name, the tied head once."""
    optimizer: dict[str, Tensor]
    """Optimizer tensors as PARAMETER/STATE."""
    loop: dict[str, Any]
    """Plain JSON: scaler, planned steps, counters, seconds, best score."""

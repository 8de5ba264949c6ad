"""States small enough to save by the hundred."""

from collections.abc import Callable

import pytest
import torch

from smallgpt.domain.state import TrainingState


def filled_state(step: int) -> TrainingState:
    """Every number in it is its step, so that a mixture of two saves shows."""
    value = float(step)
    return TrainingState(
        step=step,
        weights={
            "transformer.wte.weight": torch.full((61, 32), value),
            "transformer.ln_f.bias": torch.full((32,), value),
        },
        optimizer={"transformer.wte.weight/exp_avg": torch.full((61, 32), value)},
        loop={"tokens": step, "best": None, "scaler": {}, "seconds": value},
    )


@pytest.fixture
def make_state() -> Callable[[int], TrainingState]:
    return filled_state

"""A run without files: its checkpoints and events are lists."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt.application.evaluation import evaluate
from smallgpt.application.ports import Batches
from smallgpt.application.step import Stepper
from smallgpt.application.training import Look, Loop
from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import SmallGPTError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.metrics import Score
from smallgpt.domain.state import TrainingState
from smallgpt.domain.trainable import choose_trainable


@dataclass
class Record:
    """What a run did: a Tracker and Checkpoints in one."""

    events: list[dict[str, Any]] = field(default_factory=list)
    states: list[TrainingState] = field(default_factory=list)
    best: list[int] = field(default_factory=list)
    shards: bool = False

    def log(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def save(self, state: TrainingState) -> None:
        self.states.append(deepcopy(state))

    def kept(self, step: int) -> str:
        return f"memory/{step}"

    def finish(self) -> None:
        pass

    def mark_best(self, step: int) -> None:
        self.best.append(step)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


class KilledError(SmallGPTError):
    """The power went out."""


@dataclass
class Mortal:
    """Batches that end the process when `at` is asked for."""

    batches: Batches
    at: int | None

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        if step == self.at:
            raise KilledError("the power went out")
        return self.batches.rows(step, rows)


def look_at(blocks: list[tuple[Tensor, Tensor]]) -> Look:
    """Evaluation of those blocks, and a sampler that draws numbers that training must not miss."""

    def score(model: GPT, autocast: AbstractContextManager[Any], whole: bool) -> Score:
        return evaluate(model, blocks if whole else blocks[:1], 1000, autocast=autocast)

    def sample(model: GPT, step: int) -> dict[str, Any]:
        torch.rand(100 + step)
        return {"prompt": "Once", "text": f"Once {model.transformer.wte.weight.sum().item()}"}

    return Look(score, sample)


@dataclass
class MakeLoop:
    """Builds a loop over made batches; every part can be replaced."""

    batches: Callable[..., Batches]

    def __call__(
        self,
        config: RunConfig,
        record: Any,
        *,
        stop_at: int | None = None,
        die_at: int | None = None,
        precision: torch.dtype = torch.float32,
        look: Look | None = None,
        model: GPT | None = None,
        state: TrainingState | None = None,
    ) -> Loop:
        torch.manual_seed(config.training.seed)
        model = model or GPT(config.model)
        choose_trainable(model, config.training)
        batches = self.batches(config.model)
        stepper = Stepper(model, config, config.training.max_steps or 12, precision)
        if precision == torch.float16:
            stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)  # overflows at first
        blocks = [batches.rows(1000 + i, range(4)) for i in range(2)]
        loop = Loop(
            stepper,
            Mortal(batches, die_at),
            record,
            record,
            look or look_at(blocks),
            should_stop=lambda: loop.step == stop_at,
            peak_flops=1e9,
            memory=lambda: 123,
        )
        if state is not None:
            loop.restore(state)
        return loop


@pytest.fixture
def make_loop(make_batches: Callable[..., Batches]) -> MakeLoop:
    return MakeLoop(make_batches)


@pytest.fixture
def record() -> Record:
    return Record()

"""A run whose checkpoints are written beside it: it goes on meanwhile, and its record and errors name what is there."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from smallgpt.application.training import Loop
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.errors import CheckpointError, NumericsError, SmallGPTError
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.background_checkpoints import BackgroundCheckpoints
from tests.application.conftest import Record

MakeLoop = Callable[..., Loop]


class Beside(Record):
    """A run's record and its checkpoints, of which each is written when `ready(step)` says so; the disk holds `room`."""

    def __init__(self, ready: Callable[[int], bool] = lambda step: True, room: int = 99) -> None:
        super().__init__()
        self.ready, self.room, self.awaited = ready, room, False
        self.background = BackgroundCheckpoints(Written(self), lambda words: None)

    def save(self, state: TrainingState) -> None:
        self.background.save(state)

    def mark_best(self, step: int) -> None:
        self.background.mark_best(step)

    def kept(self, step: int) -> Any:
        return self.background.kept(step)

    def finish(self) -> None:
        self.awaited = True
        self.background.finish()


class Written(Record):
    """What the thread calls."""

    def __init__(self, owner: Beside) -> None:
        super().__init__(states=owner.states, best=owner.best)
        self.owner = owner

    def save(self, state: TrainingState) -> None:
        deadline = time.monotonic() + 30
        while not self.owner.ready(state.step):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        if len(self.states) == self.owner.room:
            raise CheckpointError("the disk is full")
        super().save(state)


def settings(tiny: GPTConfig, **training: Any) -> RunConfig:
    """12 steps; checkpoints, validated and maybe marked, at 4, 8, 12."""
    return RunConfig.model_validate(
        {
            "model": tiny,
            "training": {"batch_size": 4, "max_steps": 12, "max_skipped": 3, **training},
            "evaluation": {"every": 0, "sample_every": 0},
            "checkpoint": {"every": 4},
        }
    )


def order(record: Record) -> list[tuple[str, int]]:
    return [(event["event"], event["step"]) for event in record.events if event["event"] in ("train", "checkpoint")]


def test_steps_are_done_beside_the_writing_and_change_nothing_of_it(
    tiny: GPTConfig, make_loop: MakeLoop, record: Record
) -> None:
    make_loop(settings(tiny), record).run()
    beside = Beside(lambda step: loop.step >= min(step + 2, 12))
    loop = make_loop(settings(tiny), beside)
    loop.run()
    found = order(beside)
    assert found.index(("checkpoint", 4)) > found.index(("train", 6))
    assert [step for kind, step in found if kind == "checkpoint"] == [4, 8, 12]
    assert beside.best == record.best
    for ours, theirs in zip(beside.states, record.states, strict=True):
        for written, expected in ((ours.weights, theirs.weights), (ours.optimizer, theirs.optimizer)):
            assert written.keys() == expected.keys()
            assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    assert [event["loss"] for event in beside.of("train")] == [event["loss"] for event in record.of("train")]


def test_the_record_tells_how_long_training_stood_still(tiny: GPTConfig, make_loop: MakeLoop) -> None:
    beside = Beside(lambda step: step == 12 or loop.step > step)
    loop = make_loop(settings(tiny), beside)
    loop.run()
    pauses = {event["step"]: event["seconds"] for event in beside.of("checkpoint")}
    assert set(pauses) == {4, 8, 12}
    steps = {event["step"]: event["seconds"] for event in beside.of("train")}
    assert 0 < pauses[4] < steps[5] - steps[4]


def test_a_stopped_run_has_its_checkpoint_when_it_returns(tiny: GPTConfig, make_loop: MakeLoop) -> None:
    beside = Beside(lambda step: step == 4 or beside.awaited)
    make_loop(settings(tiny), beside, stop_at=6).run()
    assert [state.step for state in beside.states] == [4, 6]
    assert [event["step"] for event in beside.of("checkpoint")] == [4, 6]
    assert beside.events[-1]["event"] == "end"


def test_a_full_disk_ends_the_run_at_a_step_and_not_at_the_next_save(tiny: GPTConfig, make_loop: MakeLoop) -> None:
    beside = Beside(room=1)
    loop = make_loop(settings(tiny, max_steps=100_000), beside)
    loop.stepper.total_steps = 100_000
    with pytest.raises(CheckpointError, match="the disk is full"):
        loop.run()
    assert [event["step"] for event in beside.of("checkpoint")] == [4]
    assert set(beside.best) <= {4}


def test_what_was_being_written_when_a_run_failed_is_complete_and_on_record(
    tiny: GPTConfig, make_loop: MakeLoop
) -> None:
    beside = Beside(lambda step: beside.awaited)
    with pytest.raises(SmallGPTError, match="the power went out"):
        make_loop(settings(tiny), beside, die_at=5).run()
    assert [state.step for state in beside.states] == [4]
    assert [event["step"] for event in beside.of("checkpoint")] == [4]


def test_a_write_that_fails_beside_another_error_is_noted(tiny: GPTConfig, make_loop: MakeLoop) -> None:
    beside = Beside(lambda step: beside.awaited, room=0)
    with pytest.raises(SmallGPTError, match="the power went out") as caught:
        make_loop(settings(tiny), beside, die_at=5).run()
    assert caught.value.__notes__ == ["the disk is full"]


def test_bad_numbers_name_a_checkpoint_that_is_there(tiny: GPTConfig, make_loop: MakeLoop) -> None:
    beside = Beside(lambda step: loop.skipped_in_a_row == 3)
    loop = make_loop(settings(tiny), beside)

    def poison() -> bool:
        if loop.step == 4 and beside.background.last is not None:
            with torch.no_grad():
                loop.stepper.model.transformer.wpe.weight[2, 3] = torch.inf
        return False

    loop.should_stop = poison
    with pytest.raises(NumericsError, match="Last good checkpoint: memory/4"):
        loop.run()
    (state,) = beside.states
    assert all(tensor.isfinite().all() for tensor in state.weights.values())

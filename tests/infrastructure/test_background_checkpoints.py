"""Checkpoints written beside training: what is written is the state as it was, in order, and a failure is not lost."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.background_checkpoints import BackgroundCheckpoints
from smallgpt.infrastructure.checkpoints import RunCheckpoints, best_checkpoint, load_checkpoint, newest_good
from smallgpt.infrastructure.run_folder import RunFolder


@dataclass
class SlowWriter:
    """Writes when it is let, into a list; the disk is full at step `full_at`."""

    full_at: int | None = None
    may_write: threading.Event = field(default_factory=threading.Event)
    done: list[str] = field(default_factory=list)
    states: list[TrainingState] = field(default_factory=list)
    addresses: list[list[int]] = field(default_factory=list)

    def save(self, state: TrainingState) -> None:
        assert self.may_write.wait(30)
        if state.step == self.full_at:
            raise CheckpointError("the disk is full")
        self.done.append(f"save {state.step}")
        self.states.append(deepcopy(state))
        self.addresses.append([tensor.data_ptr() for tensor in (state.weights | state.optimizer).values()])

    def mark_best(self, step: int) -> None:
        self.done.append(f"best {step}")

    def kept(self, step: int) -> str:
        return f"memory/{step}"


def state_of(step: int, tensor: torch.Tensor | None = None) -> TrainingState:
    """Every number in it is its step."""
    tensor = torch.empty(7, 3) if tensor is None else tensor
    tensor.fill_(step)
    return TrainingState(step, {"w": tensor.T}, {"w/exp_avg": tensor[:, 1], "w/step": torch.tensor(float(step))}, {})


@contextmanager
def soon(event: threading.Event) -> Iterator[None]:
    """Set it while something waits for it."""
    timer = threading.Timer(0.1, event.set)
    timer.start()
    yield
    timer.join()


@pytest.fixture
def writer() -> Iterator[SlowWriter]:
    writer = SlowWriter()
    yield writer
    writer.may_write.set()  # whatever a failed test left


@pytest.fixture
def words() -> list[str]:
    return []


@pytest.fixture
def background(writer: SlowWriter, words: list[str]) -> BackgroundCheckpoints:
    return BackgroundCheckpoints(writer, words.append)


def test_the_state_is_written_as_it_was_when_saved(writer: SlowWriter, background: BackgroundCheckpoints) -> None:
    tensor = torch.empty(7, 3)
    background.save(state_of(4, tensor))
    assert background.kept(4) is None
    tensor.fill_(99.0)  # the next optimizer step
    writer.may_write.set()
    background.finish()
    assert background.kept(4) == "memory/4"
    (state,) = writer.states
    assert state.weights["w"].shape == (3, 7)
    assert state.weights["w"].is_contiguous()
    assert all((found == 4.0).all() for found in (state.weights | state.optimizer).values())


def test_marks_follow_the_states_that_they_name(writer: SlowWriter, background: BackgroundCheckpoints) -> None:
    background.save(state_of(4))
    background.mark_best(4)
    assert writer.done == []
    with soon(writer.may_write):
        background.save(state_of(8))
    background.mark_best(8)
    background.finish()
    assert writer.done == ["save 4", "best 4", "save 8", "best 8"]


def test_a_save_waits_for_the_one_before_it_and_says_so_once(
    writer: SlowWriter, background: BackgroundCheckpoints, words: list[str]
) -> None:
    for step in (1, 3):
        writer.may_write.clear()
        background.save(state_of(step))
        with soon(writer.may_write):
            background.save(state_of(step + 1))
        background.finish()
    assert [state.step for state in writer.states] == [1, 2, 3, 4]
    assert len(words) == 1
    assert words[0].startswith("checkpoint of step 2: the one before it is still being written")


def test_a_writer_that_keeps_up_is_not_spoken_of(
    writer: SlowWriter, background: BackgroundCheckpoints, words: list[str]
) -> None:
    writer.may_write.set()
    for step in (1, 2, 3):
        background.save(state_of(step))
        background.finish()
    assert words == []


def test_the_memory_of_the_copy_is_kept(writer: SlowWriter, background: BackgroundCheckpoints) -> None:
    writer.may_write.set()
    for step in (1, 2):
        background.save(state_of(step))
    background.finish()
    assert writer.addresses[0] == writer.addresses[1]


CALLS: dict[str, Callable[[BackgroundCheckpoints], object]] = {
    "save": lambda background: background.save(state_of(12)),
    "mark_best": lambda background: background.mark_best(8),
    "kept": lambda background: background.kept(4),
    "finish": lambda background: background.finish(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_failed_write_is_raised_by_whatever_is_called_next(
    writer: SlowWriter, background: BackgroundCheckpoints, call: Callable[[BackgroundCheckpoints], object]
) -> None:
    writer.full_at = 8
    writer.may_write.set()
    background.save(state_of(4))
    background.finish()
    writer.may_write.clear()
    background.save(state_of(8))
    background.mark_best(8)  # queued behind what is going to fail
    writer.may_write.set()
    assert background.last is not None
    background.last.result(30)
    with pytest.raises(CheckpointError, match="the disk is full"):
        call(background)
    background.mark_best(8)
    background.finish()
    assert writer.done == ["save 4"], "nothing is written after it, and what is not there is not marked"
    background.save(state_of(16))  # there may be room again
    background.finish()
    assert writer.done == ["save 4", "save 16"]


def test_files_are_kept_and_pruned_as_if_written_at_once(tmp_path: Path, tiny: GPTConfig) -> None:
    found = {}
    for kind in ("at once", "beside"):
        run = RunFolder(tmp_path / kind)
        keeper = RunCheckpoints(run, tiny, None, keep=2)
        saves = keeper if kind == "at once" else BackgroundCheckpoints(keeper, print)
        tensor = torch.empty(7, 3)
        for step in range(1, 7):
            saves.save(state_of(step, tensor))
            if step in (1, 2):
                saves.mark_best(step)
        saves.finish()
        best, (newest, problems) = best_checkpoint(run), newest_good(run)
        assert best is not None
        assert problems == []
        state = load_checkpoint(newest)
        assert all((tensor == 6.0).all() for tensor in (state.weights | state.optimizer).values())
        found[kind] = [best.name, *(path.name for path in run.checkpoints())]
    assert found["beside"] == found["at once"] == ["step-00000002", *(f"step-0000000{n}" for n in (2, 5, 6))]

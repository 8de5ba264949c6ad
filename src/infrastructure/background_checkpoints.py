"""Checkpoints written beside training: the state is copied, training goes on, and one thread writes the copy."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from smallgpt.domain.state import TrainingState

T = TypeVar("T")


class Writer(Protocol):
    """What does the writing, and is called by one thread alone: RunCheckpoints."""

    def save(self, state: TrainingState) -> None:
        """Write the state. Raises CheckpointError."""

    def mark_best(self, step: int) -> None:
        """Remember that state as the best. Raises CheckpointError."""

    def kept(self, step: int) -> str | None:
        """Where a written state is."""


class BackgroundCheckpoints:
    """Checkpoints that a thread writes, one at a time and in order; an application.ports.Checkpoints.

    The copy's memory is kept for the next one: taking it anew from the system costs several times the copying. What could
    not be written is raised by the next call, whichever it is; until the next save nothing more is written then, so that no
    mark names a checkpoint which is not there.
    """

    shards = False

    def __init__(self, writer: Writer, say: Callable[[str], None]) -> None:
        """`say` hears, once, that saves come faster than they can be written."""
        self.writer, self.say = writer, say
        self.thread = ThreadPoolExecutor(1, "checkpoints", initializer=_give_way)
        self.last: Future[None] | None = None
        self.failed = False
        self.error: Exception | None = None  # not raised yet
        self.places: dict[int, str | None] = {}
        self.buffers: dict[str, Tensor] = {}
        self.waited = False

    def save(self, state: TrainingState) -> None:
        """Copy the state and have it written; waits first for what is still being written. Raises CheckpointError."""
        if not self.waited and self.last is not None and not self.last.done():
            self.waited = True
            self.say(
                f"checkpoint of step {state.step:,}: the one before it is still being written, and is waited for; "
                "a larger --checkpoint.every leaves the disk more time"
            )
        self.finish()  # there is one copy
        self.failed = False
        weights, optimizer = self._copied(state.weights), self._copied(state.optimizer)
        if any(tensor.is_cuda for tensor in (*state.weights.values(), *state.optimizer.values())):
            torch.cuda.current_stream().synchronize()  # the next step overwrites what is being copied
        self._hand_over(self._write, TrainingState(state.step, weights, optimizer, state.loop))

    def mark_best(self, step: int) -> None:
        """See application.ports.Checkpoints; the mark is written after the state that it names."""
        self._hand_over(self.writer.mark_best, step)

    def kept(self, step: int) -> str | None:
        """See application.ports.Checkpoints."""
        self._raise()
        return self.places.get(step)

    def finish(self) -> None:
        """See application.ports.Checkpoints."""
        if self.last is not None:
            wait([self.last])
        self._raise()

    def _copied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each in the buffer of its name, contiguous, in memory that a GPU can write to by itself where it lies on one."""
        for name, tensor in tensors.items():
            if name not in self.buffers:
                self.buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return {name: self.buffers[name].copy_(tensor.detach(), non_blocking=True) for name, tensor in tensors.items()}

    def _hand_over(self, action: Callable[[T], None], argument: T) -> None:
        self._raise()
        self.last = self.thread.submit(self._do, action, argument)

    def _do(self, action: Callable[[T], None], argument: T) -> None:
        """In the thread."""
        if not self.failed:
            try:
                action(argument)
            except Exception as error:  # raised where training can end
                self.failed, self.error = True, error

    def _write(self, state: TrainingState) -> None:
        self.writer.save(state)
        self.places[state.step] = self.writer.kept(state.step)

    def _raise(self) -> None:
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # it holds the frames of this call, and so this object: a cycle with all they hold


def _give_way() -> None:
    """Take what training leaves of the cores: Linux has priorities of threads."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)

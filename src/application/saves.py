"""The checkpoints of a run in progress, and what its record says of them: only what is there."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from smallgpt.application.ports import Checkpoints, Tracker
from smallgpt.domain.state import TrainingState


class Saves:
    """Saves states, and logs each as a checkpoint event once it is kept, which may be some steps later."""

    def __init__(self, checkpoints: Checkpoints, tracker: Tracker) -> None:
        self.checkpoints, self.tracker = checkpoints, tracker
        self.last_good = "none yet"
        self.waiting: dict[int, float] = {}
        """Steps whose checkpoints are not on record yet, and the seconds for which training stood still for each."""

    def save(self, state: TrainingState, since: float) -> None:
        """Save; training has stood still since then (perf_counter). Raises CheckpointError."""
        self.checkpoints.save(state)
        self.waiting[state.step] = time.perf_counter() - since
        self.record()

    def record(self) -> None:
        """Log what is kept by now. Raises CheckpointError for what could not be."""
        for step in list(self.waiting):
            path = self.checkpoints.kept(step)
            if path is not None:
                self.last_good = path
                seconds = self.waiting.pop(step)
                self.tracker.log({"event": "checkpoint", "step": step, "path": path, "seconds": seconds})

    def finish(self) -> None:
        """Wait until everything is kept. Raises CheckpointError."""
        self.checkpoints.finish()
        self.record()

    @contextmanager
    def finished_after(self) -> Iterator[None]:
        """However what is done within it fails: what was being saved is then complete, or is told to have failed too."""
        try:
            yield
        except Exception as error:
            try:
                self.finish()
            except Exception as another:
                if isinstance(error, OSError):  # the record's disk is full too, and these words tell more
                    raise another from error
                error.add_note(str(another))
            raise

"""What training asks of the outside: batches, a place for checkpoints, and ears for events."""

from typing import Any, Protocol

from torch import Tensor

from smallgpt.domain.state import TrainingState


class Batches(Protocol):
    """A pure function of (seed, step, row), so that no sampler has state and any number of processes sees one stream."""

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64, of those rows of the step's global batch; -100 marks no target.

        (len(rows), T) each, or that many tokens in shorter windows.
        """


class Checkpoints(Protocol):
    """Keeps states; a save is complete or absent, and may be completed beside training.

    Every call raises CheckpointError for an earlier save that failed meanwhile.
    """

    @property
    def shards(self) -> bool:
        """Does each process give it what it holds, instead of the first one everything?"""

    def save(self, state: TrainingState) -> None:
        """Keep the state, whose tensors may change as soon as this returns. Raises CheckpointError."""

    def mark_best(self, step: int) -> None:
        """The saved state of `step` has the lowest validation loss so far."""

    def kept(self, step: int) -> str | None:
        """Where the state of `step`, which was saved, is kept; None while that goes on."""

    def finish(self) -> None:
        """Wait until everything is kept."""


class Tracker(Protocol):
    """Hears of every step, evaluation and sample. Must not change anything that training reads."""

    def log(self, event: dict[str, Any]) -> None:
        """One flat JSON object; "event" names its kind, "step" its optimizer step."""

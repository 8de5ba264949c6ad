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
    """Keeps whole states; a save is complete or absent."""

    def save(self, state: TrainingState) -> str:
        """Keep the state and say where. Raises CheckpointError."""

    def mark_best(self, step: int) -> None:
        """The kept state of `step` has the lowest validation loss so far."""

    def finish(self) -> None:
        """Until everything saved is where it is to be kept. Raises CheckpointError."""


class Tracker(Protocol):
    """Hears of every step, evaluation and sample. Must not change anything that training reads."""

    def log(self, event: dict[str, Any]) -> None:
        """One flat JSON object; "event" names its kind, "step" its optimizer step."""

"""What the model sees: rows of T tokens as a pure function of (seed, number), so that no sampler has state.

A view is an endless sequence of rows. Each of its epochs visits everything once, in an order of its own.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.permutation import key_of, permute
from smallgpt.infrastructure.pieces import Pieces
from smallgpt.infrastructure.tokens import Places, Tokens

Rows = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
NO_TARGET = -100


class View(Protocol):
    """Rows of one or more streams. Which rows they are depends on nothing but their numbers."""

    @property
    def block_size(self) -> int:
        """T: inputs, and targets, of a row."""

    def rows(self, sample: Places) -> Rows:
        """Inputs and targets, (n, T) each, of rows number `sample` (n,); -100 marks no target. Raises DataError."""


class Anywhere:
    """Windows that lie side by side in the stream, whatever they cut.

    Each epoch's windows are shifted by a phase of its own, so that a token is not always met with the same context.
    """

    def __init__(self, tokens: Tokens, *, block_size: int, seed: int) -> None:
        if len(tokens) < block_size + 1:
            raise DataError(
                f"{len(tokens)} training tokens are too few for a block of {block_size} and its next token; "
                f"lower --model.block-size to at most {len(tokens) - 1}, or prepare more text"
            )
        self.tokens, self.block_size, self._seed = tokens, block_size, seed
        self.windows = max(1, len(tokens) // block_size - 1)
        """Windows in an epoch."""

    def rows(self, sample: Places) -> Rows:
        """See View."""
        window = self.tokens.windows(self.starts(sample), self.block_size + 1).astype(np.int64)
        return window[:, :-1], window[:, 1:]

    def starts(self, sample: Places) -> Places:
        """(n,): where the windows of those rows begin in the stream."""
        T = self.block_size
        epoch, index = sample // self.windows, sample % self.windows
        key = key_of(self._seed, epoch)
        phase = (key % np.uint64(min(T, len(self.tokens) - self.windows * T))).astype(np.int64)
        return phase + T * permute(index, self.windows, key)


class FromDocuments:
    """Windows that begin where a document does, or every T tokens further inside it, and go on with what follows.

    The first input of a document is the end-of-text before it, so that its first token is predicted too.
    """

    def __init__(self, tokens: Tokens, starts: Places, *, end_of_text: int, block_size: int, seed: int) -> None:
        self.tokens, self.block_size = tokens, block_size
        self._pieces = Pieces(starts, len(tokens), block_size, whole=False)
        self._end_of_text, self._seed = end_of_text, seed

    @property
    def windows(self) -> int:
        """Windows in an epoch."""
        return self._pieces.count

    def rows(self, sample: Places) -> Rows:
        """See View. After the stream's end there are end-of-text and no targets."""
        T, end = self.block_size, len(self.tokens)
        epoch, index = sample // self.windows, sample % self.windows
        start = self._pieces.starts(permute(index, self.windows, key_of(self._seed, epoch)))
        window = np.full((len(start), T + 1), self._end_of_text, dtype=np.int64)
        inside = (start > 0) & (start + T <= end)
        window[inside] = self.tokens.windows(start[inside] - 1, T + 1)
        for row in np.flatnonzero(~inside):  # the first document and the last ones
            before = int(start[row]) - 1
            low, high = max(before, 0), min(before + T + 1, end)
            window[row, low - before : high - before] = self.tokens[low:high]
        targets = window[:, 1:].copy()
        targets[start[:, None] + np.arange(T) >= end] = NO_TARGET
        return window[:, :-1], targets


class Batches:
    """A view's rows dealt to the steps of a run: application.ports.Batches."""

    def __init__(self, view: View, batch_size: int) -> None:
        self.view, self.batch_size = view, batch_size

    def rows(self, step: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (len(rows), T) int64 each, of those rows of the step's batch."""
        inputs, targets = self.view.rows(self.samples(step, rows))
        return torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(np.ascontiguousarray(targets))

    def samples(self, step: int, rows: Sequence[int]) -> Places:
        """Their numbers in the view."""
        return np.asarray(rows, dtype=np.int64) + step * self.batch_size


class ShortThenFull:
    """Batches of rows half as long, and twice as many, for the first `short_steps`; full rows from then on.

    A step has the same number of tokens in both parts, and row r of a batch stands for the short rows 2r and 2r + 1.
    """

    def __init__(self, full: View, batch_size: int, *, short: View | None = None, short_steps: int = 0) -> None:
        self.full, self.short_steps = Batches(full, batch_size), short_steps
        self.short = Batches(short or full, 2 * batch_size)

    def rows(self, step: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See application.ports.Batches."""
        batches, rows = self.at(step, rows)
        return batches.rows(step, rows)

    def at(self, step: int, rows: Sequence[int]) -> tuple[Batches, Sequence[int]]:
        """The batches that the step takes, and which of their rows."""
        if step >= self.short_steps:
            return self.full, rows
        return self.short, [2 * row + half for row in rows for half in (0, 1)]

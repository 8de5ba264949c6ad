"""A split as documents of token ids, handed out in batches of bounded size: what every check of the data reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.unsignedinteger[Any]]
Offsets = npt.NDArray[np.int64]
TOKENS_AT_ONCE = 2**20
_DOCUMENTS_AT_ONCE = 2**17


class TokenSlices(Protocol):
    """An array, a mapped file, or anything else that gives ids by slices."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: slice, /) -> Ids: ...


@dataclass(frozen=True)
class Piece:
    """One stream of tokens, and where its documents begin: (documents,) int64, ascending, the first 0."""

    tokens: TokenSlices
    starts: Offsets


@dataclass(frozen=True)
class Batch:
    """Consecutive documents of a split."""

    first: int
    """Number of its first document in the split."""
    ids: Ids
    """(tokens,) of all its documents, one after the other, without the end-of-text between them."""
    offsets: Offsets
    """(documents + 1,): document i is ids[offsets[i] : offsets[i + 1]]."""
    skipped: int = 0
    """Tokens of its first document that the batches before have had: above 0, it is the rest of a long one."""

    @property
    def documents(self) -> slice:
        """Where values per document belong in an array of the whole split."""
        return slice(self.first, self.first + len(self.offsets) - 1)


@dataclass(frozen=True)
class DocumentTokens:
    """The documents of a split, in one stream or several that follow each other (the parts of a corpus)."""

    pieces: tuple[Piece, ...]
    end_of_text: int | None
    """The id after each document, which is not part of it."""

    def __len__(self) -> int:
        return sum(len(piece.starts) for piece in self.pieces)

    def batches(self, tokens: int = TOKENS_AT_ONCE) -> Iterator[Batch]:
        """All documents in order. Up to `tokens` ids at once; a longer document is handed out in several batches."""
        before = 0
        for piece in self.pieces:
            at = 0
            while at < len(piece.starts):
                end = at + _fitting(piece, at, tokens)
                yield from self._batches(piece, at, end, before + at, tokens)
                at = end
            before += len(piece.starts)

    def _batches(self, piece: Piece, at: int, end: int, first: int, tokens: int) -> Iterator[Batch]:
        """Documents at..end of a piece: several that fit, or one in spans."""
        starts = np.asarray(piece.starts[at:end])
        stop = int(piece.starts[end]) if end < len(piece.starts) else len(piece.tokens)
        low = int(starts[0])
        offsets = np.append(starts, stop) - low
        for skipped in range(0, max(stop - low, 1), tokens):
            ids = np.asarray(piece.tokens[low + skipped : min(low + skipped + tokens, stop)])
            if stop - low > tokens:
                offsets = np.array([0, len(ids)], dtype=np.int64)
            yield _without(self.end_of_text, Batch(first, ids, offsets, skipped))


def one_stream(tokens: TokenSlices, starts: Offsets, end_of_text: int | None) -> DocumentTokens:
    """The documents of a single stream."""
    return DocumentTokens((Piece(tokens, starts),), end_of_text)


def _fitting(piece: Piece, at: int, tokens: int) -> int:
    """How many documents from `at` on have no more than `tokens` ids together; at least one."""
    near = np.asarray(piece.starts[at : at + _DOCUMENTS_AT_ONCE + 1])
    inside = int(np.searchsorted(near, near[0] + tokens, side="right")) - 1
    if len(near) <= _DOCUMENTS_AT_ONCE and len(piece.tokens) - near[0] <= tokens:
        inside = len(near)
    return max(1, min(inside, _DOCUMENTS_AT_ONCE))


def _without(end_of_text: int | None, batch: Batch) -> Batch:
    """The batch without the end-of-text at its documents' ends."""
    if end_of_text is None:
        return batch
    last = batch.offsets[1:] - 1
    ends = last[(batch.offsets[1:] > batch.offsets[:-1]) & (batch.ids[last] == end_of_text)]
    if len(ends) == 0:
        return batch
    kept = np.ones(len(batch.ids), dtype=np.bool_)
    kept[ends] = False
    removed = np.searchsorted(ends, batch.offsets)
    return Batch(batch.first, batch.ids[kept], batch.offsets - removed, batch.skipped)

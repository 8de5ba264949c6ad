"""A split's ids as one stream over one file or many, mapped when they are first read."""

import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallgpt.domain.errors import DataError

Ids = npt.NDArray[np.unsignedinteger]
Places = npt.NDArray[np.int64]
MOST_MAPS = 2**14  # Linux allows a process 65,530
_SCANNED_AT_ONCE = 2**24


@dataclass(frozen=True)
class TokenPart:
    """A stretch of a stream."""

    name: str
    """Of its file, for messages."""
    tokens: int
    read: Callable[[], Ids]
    """All of its ids, (tokens,); asked for when the first of them is needed."""


def file_part(path: Path, dtype: str, tokens: int) -> TokenPart:
    """A file of raw little-endian ids ("uint16" or "uint32")."""
    return TokenPart(str(path), tokens, partial(mapped, path, dtype))


def mapped(path: Path, dtype: str) -> Ids:
    """(tokens,) ids of a file, read from the disk as they are touched."""
    return np.asarray(np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r"))


class Tokens:
    """Ids of several parts that follow each other. What is read is checked against the vocabulary.

    A slice costs what it holds, whatever the size of the stream.
    """

    def __init__(self, parts: Sequence[TokenPart], dtype: str, vocab_size: int) -> None:
        self.parts, self.dtype, self.vocab_size = tuple(parts), np.dtype(dtype).newbyteorder("<"), vocab_size
        self._ends: Places = np.cumsum([part.tokens for part in self.parts], dtype=np.int64)
        self._begins = self._ends - [part.tokens for part in self.parts]
        self._length = int(self._ends[-1])
        self._ids = lru_cache(maxsize=_maps_at_once())(lambda part: self.parts[part].read())

    def __len__(self) -> int:
        """Tokens in all parts."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self._length * self.dtype.itemsize

    def __getitem__(self, wanted: slice) -> Ids:
        """The ids of a slice without a step. Raises DataError for an id that the vocabulary has not."""
        low, high, _ = wanted.indices(self._length)
        return self._checked(self._slice(low, high), np.array([low]))

    def windows(self, starts: Places, length: int) -> Ids:
        """(n, length): the ids from each start (n,) on, all within the stream. Raises DataError as a slice does."""
        if len(self.parts) == 1:
            found = self._ids(0)[starts[:, None] + np.arange(length)]
        else:
            found = np.empty((len(starts), length), dtype=self.dtype)
            part = np.searchsorted(self._ends, starts, side="right")
            inside, first = starts + length <= self._ends[part], starts - self._begins[part]
            for row in np.flatnonzero(inside).tolist():
                found[row] = self._ids(int(part[row]))[first[row] : first[row] + length]
            for row in np.flatnonzero(~inside).tolist():
                found[row] = self._slice(int(starts[row]), int(starts[row]) + length)
        return self._checked(found, starts)

    def _slice(self, low: int, high: int) -> Ids:
        pieces = list(self._pieces(low, high))
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, dtype=self.dtype), *pieces])

    def _pieces(self, low: int, high: int) -> Iterator[Ids]:
        part = int(np.searchsorted(self._ends, low, side="right"))
        while low < high:
            begin, end = int(self._begins[part]), int(self._ends[part])
            if begin < end:
                yield self._ids(part)[low - begin : high - begin]
            low, part = max(low, end), part + 1

    def _checked(self, ids: Ids, starts: Places) -> Ids:
        """The same ids, of which each row begins at its start."""
        if ids.size and int(ids.max()) >= self.vocab_size:
            row, column = divmod(int(ids.argmax()), ids.shape[-1])
            place = int(starts[row]) + column
            part = self.parts[int(np.searchsorted(self._ends, place, side="right"))]
            raise DataError(
                f"{part.name}: token id {ids.max()} at position {place} of the stream, but the vocabulary ends at "
                f"{self.vocab_size - 1}; the file was changed.\n"
                f"`smallgpt prepare verify {Path(part.name).parent}` tells which files; prepare the data again"
            )
        return ids


def highest_id(ids: Ids) -> int:
    """The largest id, read in parts so that a mapped file never fills the memory."""
    parts = range(0, len(ids), _SCANNED_AT_ONCE)
    return max(int(ids[at : at + _SCANNED_AT_ONCE].max()) for at in parts)


def _maps_at_once() -> int:
    """Files of a stream that are mapped together: Python keeps a descriptor open for each."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_MAPS if limit == resource.RLIM_INFINITY else min(MOST_MAPS, max(16, limit // 4))

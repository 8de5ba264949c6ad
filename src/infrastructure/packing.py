"""Rows packed from whole documents with the least cutting.

Best-fit decreasing (Ding et al. 2024, "Fewer truncations improve language modeling"): the longest pieces first, each into
the fullest row that still has room. Pieces of a length are alike, so the plan is made of how many there are of each: it
takes O(T²), whatever the size of the corpus (as Krell et al. 2021, "Efficient sequence packing without
cross-contamination", pack histograms).
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smallgpt.infrastructure.permutation import key_of, mix, permute
from smallgpt.infrastructure.pieces import Pieces, document_ends, lengths
from smallgpt.infrastructure.tokens import Places, Tokens
from smallgpt.infrastructure.windows import NO_TARGET, Rows

_DOCUMENTS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Pattern:
    """Rows that are filled alike."""

    rows: int
    pieces: tuple[tuple[int, int], ...]
    """(length, how many of it), the longest first."""


def best_fit_decreasing(counts: Sequence[int]) -> list[Pattern]:
    """Rows for counts[l] pieces of each length l up to T = len(counts) - 1, each piece in one row."""
    T = len(counts) - 1
    by_room: dict[int, list[Pattern]] = {}
    rooms: list[int] = []  # the keys of by_room, in order

    def put(pattern: Pattern, room: int) -> None:
        if room not in by_room:
            by_room[room] = []
            insort(rooms, room)
        by_room[room].append(pattern)

    def take(length: int, left: int) -> tuple[Pattern, int]:
        """The fullest rows with room for the length, or else as many new ones as could be needed; and their room."""
        at = bisect_left(rooms, length)
        if at == len(rooms):
            return Pattern(left, ()), T
        room = rooms[at]
        pattern = by_room[room].pop()
        if not by_room[room]:
            del by_room[room], rooms[at]
        return pattern, room

    for length in range(T, 0, -1):
        left = counts[length]
        while left:
            pattern, room = take(length, left)
            # A row that took a piece is the fullest one with room for the next: it is filled before another is begun.
            each = min(room // length, left)
            rows = min(pattern.rows, left // each)
            put(Pattern(rows, (*pattern.pieces, (length, each))), room - each * length)
            if rows < pattern.rows and pattern.pieces:
                put(Pattern(pattern.rows - rows, pattern.pieces), room)
            left -= rows * each
    return [pattern for room in rooms for pattern in by_room[room]]


class Packed:
    """Rows of whole documents, each with its end-of-text; documents longer than T are cut into pieces.

    Every row begins with an end-of-text as its first input. Every token from the first document on is a target once an
    epoch; what a row has left is filled with end-of-text inputs without a target. Kept are 4 bytes a document.
    """

    def __init__(self, tokens: Tokens, starts: Places, *, end_of_text: int, block_size: int, seed: int) -> None:
        T = block_size
        self.tokens, self.block_size = tokens, T
        self._starts, self._end_of_text, self._seed = starts, end_of_text, seed
        self._whole = Pieces(starts, len(tokens), T, whole=True)
        rests = self._histogram()
        self._first = np.concatenate([[0], np.cumsum(rests)[:-1]])  # of a length, in self._order
        self._order = self._sorted_by_rest(rests)
        self._counts = np.append(np.where(np.arange(T) > 0, rests, 0), self._whole.count)  # (T + 1,) pieces by length
        self.patterns = best_fit_decreasing(self._counts.tolist())
        self._end = np.cumsum([pattern.rows for pattern in self.patterns])
        self.windows = int(self._end[-1])
        """Rows in an epoch."""
        self._used = self._pieces_before()

    def rows(self, sample: Places) -> Rows:
        """See windows.View."""
        T = self.block_size
        epoch, index = sample // self.windows, sample % self.windows
        key = key_of(self._seed, epoch)
        row, length, start = self._pieces(permute(index, self.windows, key), key)
        targets = np.full((len(sample), T), NO_TARGET, dtype=np.int64)
        filled = [0] * len(sample)
        for r, size, at in zip(row.tolist(), length.tolist(), start.tolist(), strict=True):
            targets[r, filled[r] : filled[r] + size] = self.tokens[at : at + size]
            filled[r] += size
        inputs = np.full((len(sample), T), self._end_of_text, dtype=np.int64)
        inputs[:, 1:] = np.where(targets[:, :-1] == NO_TARGET, self._end_of_text, targets[:, :-1])
        return inputs, targets

    def _pieces(self, place: Places, key: npt.NDArray[np.uint64]) -> tuple[Places, Places, Places]:
        """(row, length, start in the stream) of each piece of the rows at those places of the plan, in a random order."""
        found: list[tuple[int, int, int]] = []
        for r, at in enumerate(place.tolist()):
            number = int(np.searchsorted(self._end, at, side="right"))
            pattern, before = self.patterns[number], self._used[number]
            nth = at - (int(self._end[number]) - pattern.rows)
            for (length, each), used in zip(pattern.pieces, before, strict=True):
                found += [(r, length, used + nth * each + copy) for copy in range(each)]
        row, length, item = np.array(found, dtype=np.int64).T
        own = mix(key[row] ^ length.astype(np.uint64))
        item = permute(item, self._counts[length], own)
        start = np.empty_like(item)
        whole = length == self.block_size
        start[whole] = self._whole.starts(item[whole])
        document = self._order[self._first[np.where(whole, 0, length)] + np.where(whole, 0, item)].astype(np.int64)
        start[~whole] = (document_ends(self._starts, len(self.tokens), document) - length)[~whole]
        order = np.lexsort((mix(own ^ start.astype(np.uint64)), row))  # or the shortest would always stand last
        return row[order], length[order], start[order]

    def _histogram(self) -> Places:
        """(T,): documents by what is left of their length after pieces of T."""
        rests = np.zeros(self.block_size, dtype=np.int64)
        for low in range(0, len(self._starts), _DOCUMENTS_AT_ONCE):
            rests += np.bincount(self._rests(low), minlength=self.block_size)
        return rests

    def _sorted_by_rest(self, rests: Places) -> npt.NDArray[np.unsignedinteger]:
        """(documents,): their numbers, by what is left of their length."""
        kind = "uint32" if len(self._starts) < 2**32 else "uint64"
        order: npt.NDArray[np.unsignedinteger] = np.empty(len(self._starts), dtype=kind)
        free = np.cumsum(rests) - rests
        for low in range(0, len(self._starts), _DOCUMENTS_AT_ONCE):
            rest = self._rests(low)
            by_rest, here = np.argsort(rest, kind="stable"), np.bincount(rest, minlength=self.block_size)
            within = np.arange(len(rest)) - np.repeat(np.cumsum(here) - here, here)
            order[free[rest[by_rest]] + within] = low + by_rest
            free += here
        return order

    def _rests(self, low: int) -> Places:
        return lengths(self._starts, len(self.tokens), low, low + _DOCUMENTS_AT_ONCE) % self.block_size

    def _pieces_before(self) -> list[tuple[int, ...]]:
        """For each pattern, how many pieces of each of its lengths the patterns before it take."""
        taken: Counter[int] = Counter()
        found = []
        for pattern in self.patterns:
            found.append(tuple(taken[length] for length, _ in pattern.pieces))
            taken.update({length: pattern.rows * each for length, each in pattern.pieces})
        return found

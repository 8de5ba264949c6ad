"""Documents cut every T tokens, numbered from the first to the last, without a list of them."""

import numpy as np

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.tokens import Places

_DOCUMENTS_AT_ONCE = 2**20
_STRIDE = 64


def document_ends(starts: Places, tokens: int, at: Places) -> Places:
    """(n,): where documents number `at` (n,) end, their end-of-text included."""
    return np.where(at + 1 < len(starts), starts[np.minimum(at + 1, len(starts) - 1)], tokens)


def lengths(starts: Places, tokens: int, low: int, high: int) -> Places:
    """(high - low,): tokens of those documents, each with its end-of-text. Raises DataError where one has none."""
    high = min(high, len(starts))
    borders = starts[low : high + 1] if high < len(starts) else np.append(starts[low:high], tokens)
    found = np.diff(borders)
    if len(found) and found.min() <= 0:
        bad = low + int(found.argmin())
        raise DataError(
            f"document {bad} starts at {starts[bad]}, and the next one not after it; "
            "`smallgpt prepare verify DIR` tells what is damaged; prepare the data again"
        )
    return found


class Pieces:
    """Pieces of T tokens, and with whole=False also the shorter ones that documents end with.

    Kept are 8 bytes for every 64 documents; a piece costs the reading of as many starts.
    """

    def __init__(self, starts: Places, tokens: int, length: int, *, whole: bool) -> None:
        self._starts, self._tokens, self._length = starts, tokens, length
        self._round = 0 if whole else length - 1
        counts = [np.zeros(1, dtype=np.int64)]
        for low in range(0, len(starts), _DOCUMENTS_AT_ONCE):
            pieces = self._count(lengths(starts, tokens, low, low + _DOCUMENTS_AT_ONCE))
            counts.append(np.add.reduceat(pieces, np.arange(0, len(pieces), _STRIDE)))
        self._before = np.cumsum(np.concatenate(counts))
        self.count = int(self._before[-1])
        """Pieces of all documents."""

    def starts(self, number: Places) -> Places:
        """(n,): where pieces number `number` (n,) begin in the stream."""
        stride = np.searchsorted(self._before, number, side="right") - 1
        number = number - self._before[stride]  # in its stride of documents
        at = stride[:, None] * _STRIDE + np.arange(_STRIDE + 1)
        inside = at < len(self._starts)
        borders = np.where(inside, self._starts[np.where(inside, at, 0)], self._tokens)  # (n, _STRIDE + 1)
        pieces = np.cumsum(self._count(np.diff(borders)), axis=1)
        document = (pieces <= number[:, None]).sum(axis=1)
        row = np.arange(len(number))
        before = np.where(document > 0, pieces[row, document - 1], 0)
        found: Places = borders[row, document] + self._length * (number - before)
        return found

    def _count(self, lengths: Places) -> Places:
        count: Places = (lengths + self._round) // self._length
        return count

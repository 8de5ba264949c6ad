"""n-gram baselines: what tables of one, two and three tokens reach on a text, in nats per token. Numpy, and little memory."""

from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from smallgpt.domain.errors import DataError

Ids = npt.NDArray[np.integer]
_Keys = npt.NDArray[np.uint64]
_Numbers = npt.NDArray[np.float64]
_KEY_BITS = 63


def ngram_baselines(train: Ids, held_out: Ids, vocab_size: int) -> dict[str, float]:
    """Nats per token on held_out (M,) of tables counted on train (N,), ids below vocab_size: uniform to trigram.

    Interpolated Kneser-Ney (Chen & Goodman 1998) with one discount per order, n1 / (n1 + 2 n2); the unigram of the
    bigram and trigram is the continuation count, smoothed by adding one; `unigram` itself is the add-one frequency.
    Takes about 20 bytes a training token. Raises DataError when train has 2 million distinct ids or more.
    """
    counts = np.bincount(train, minlength=vocab_size)
    seen = counts > 0
    distinct = int(seen.sum())
    bits = distinct.bit_length()
    if 3 * bits > _KEY_BITS:
        raise DataError(
            f"{distinct:,} distinct ids among {len(train):,} tokens are no text; count n-grams on fewer tokens"
        )
    # Ids are renumbered to those that occur, so that three fit a key; the unseen ones share the number after the last.
    number = np.full(vocab_size, distinct, dtype=np.uint32)
    number[seen] = np.arange(distinct, dtype=np.uint32)
    frequency = (np.append(counts[seen], 0) + 1.0) / (len(train) + vocab_size)
    x, known = number[held_out], number[train]

    triples = _Table.of(*_counted(_keys(known, 3, bits)), bits)
    pairs = _Table.of(*_pairs(triples, _keys(known[-2:], 2, bits)), bits)
    continuation = np.bincount((pairs.keys & np.uint64(2**bits - 1)).astype(np.int64), minlength=distinct + 1)
    p1 = ((continuation + 1.0) / (len(pairs.keys) + vocab_size))[x]

    # as the highest order the bigram uses raw counts; below the trigram it uses how many contexts a pair completes
    completed = _Table.of(*_counted(triples.keys & np.uint64(4**bits - 1)), bits)
    asked = _keys(x, 2, bits)
    p2 = pairs.interpolate(asked, p1[1:])
    lower = completed.interpolate(asked, p1[1:])
    p3 = triples.interpolate(_keys(x, 3, bits), lower[1:])
    return {
        "uniform": log(vocab_size),
        "unigram": -float(np.log(frequency)[x].mean()),
        "bigram": -_mean_log(p1[:1], p2),
        "trigram": -_mean_log(p1[:1], p2[:1], p3),
    }


@dataclass(frozen=True)
class _Table:
    """Counted keys, each a context above the `bits` of its last token; one context's keys are neighbours."""

    bits: int
    keys: _Keys
    """(kinds,) sorted."""
    borders: npt.NDArray[np.int64]
    """(kinds + 1,): the count of key k is borders[k + 1] - borders[k]."""
    contexts: _Keys
    """(contexts,) sorted."""
    first: npt.NDArray[np.int64]
    """(contexts + 1,): where the keys of a context begin."""
    discount: float

    @classmethod
    def of(cls, keys: _Keys, counts: npt.NDArray[np.int64], bits: int) -> "_Table":
        """Of sorted, different keys: the contexts need no sort of their own."""
        contexts = keys >> np.uint64(bits)
        first = _borders(contexts)
        borders = np.concatenate([[0], np.cumsum(counts)])
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        return cls(bits, keys, borders, contexts[first[:-1]], first, discount)

    def interpolate(self, queries: _Keys, lower: _Numbers) -> _Numbers:
        """(queries,): the discounted probability of each query's last token after its context."""
        if len(self.keys) == 0:  # a text of fewer tokens than the table's order
            return lower
        order = np.argsort(queries)  # neighbours are found in the same cache lines
        queries, lower = queries[order], lower[order]
        key, found = _find(self.keys, queries)
        count = np.where(found, self.borders[key + 1] - self.borders[key], 0)
        context, known = _find(self.contexts, queries >> np.uint64(self.bits))
        low, high = self.first[context], self.first[context + 1]
        total = self.borders[high] - self.borders[low]
        share = np.maximum(count - self.discount, 0) / total
        probability = np.empty(len(queries))
        probability[order] = np.where(known, share + self.discount * (high - low) / total * lower, lower)
        return probability


def _keys(ids: npt.NDArray[np.uint32], order: int, bits: int) -> _Keys:
    """(tokens - order + 1,): each `order` neighbours as one number, the first in the highest bits."""
    windows = max(len(ids) - order + 1, 0)
    keys = np.zeros(windows, dtype=np.uint64)
    for at in range(order):
        keys <<= np.uint64(bits)
        keys |= ids[at : at + windows]
    return keys


def _counted(keys: _Keys) -> tuple[_Keys, npt.NDArray[np.int64]]:
    """The different keys in order, and how often each occurs. Sorts `keys` in place."""
    keys.sort()
    borders = _borders(keys)
    return keys[borders[:-1]], np.diff(borders)


def _pairs(triples: _Table, last: _Keys) -> tuple[_Keys, npt.NDArray[np.int64]]:
    """As `_counted` of a text's pairs: all but the last (none in a text of one token) are contexts of a triple."""
    keys, counts = triples.contexts, np.diff(triples.borders[triples.first])
    at, known = _find(keys, last)
    counts[at[known]] += 1
    missing = last[~known]
    place = np.searchsorted(keys, missing)
    return np.insert(keys, place, missing), np.insert(counts, place, 1)


def _borders(ascending: _Keys) -> npt.NDArray[np.int64]:
    """(kinds + 1,): where each new value begins, and the end."""
    if len(ascending) == 0:
        return np.zeros(1, dtype=np.int64)
    changes = np.flatnonzero(ascending[1:] != ascending[:-1]) + 1
    return np.concatenate([[0], changes, [len(ascending)]])


def _find(ascending: _Keys, queries: _Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each query stands, and whether it is there at all."""
    if len(ascending) == 0:
        return np.zeros(len(queries), dtype=np.int64), np.zeros(len(queries), dtype=np.bool_)
    at = np.minimum(np.searchsorted(ascending, queries), len(ascending) - 1)
    return at, ascending[at] == queries


def _mean_log(*probabilities: _Numbers) -> float:
    return float(np.log(np.concatenate(probabilities)).mean())

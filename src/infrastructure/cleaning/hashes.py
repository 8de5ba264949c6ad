"""64-bit numbers that stand for documents and for n-grams of token ids.

Different documents or n-grams share a number with probability 2^-64 a pair: among D of them some do with about
D² / 2^65, which is 1 in 90,000 for 20 million. Nothing depends on the machine or on how batches are cut.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from smallgpt.infrastructure.cleaning.documents import Batch, DocumentTokens, Offsets
from smallgpt.infrastructure.permutation import mix

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
_ODD = np.uint64(0x9E3779B97F4A7C15)
_LANES = 16
_LENGTH = np.uint64(0xD6E8FEB86659FD93)


def document_hashes(*splits: DocumentTokens) -> Hashes:
    """(documents of all splits,): a number for the token ids of each, equal for equal documents."""
    hashes = np.zeros(sum(map(len, splits)), dtype=np.uint64)
    before = 0
    for documents in splits:
        of_split = hashes[before : before + len(documents)]
        for batch in documents.batches():
            of_split[batch.documents] += batch_hashes(batch)
        before += len(documents)
    return hashes


def batch_hashes(batch: Batch) -> Hashes:
    """(documents,): the sum over a document's tokens of a random number for (id, place), so that spans add up."""
    lengths = np.diff(batch.offsets)
    place = np.arange(len(batch.ids)) - np.repeat(batch.offsets[:-1], lengths)
    place[: batch.offsets[1]] += batch.skipped
    keys = (place.astype(np.uint64) << np.uint64(32)) | batch.ids
    return _sums(mix(keys), batch.offsets) + lengths.astype(np.uint64) * _LENGTH


def gram_hashes(batch: Batch, n: int) -> tuple[Hashes, Offsets]:
    """The n-grams of each document, in order: their numbers, and offsets (documents + 1,) as in `Batch`.

    A document of fewer than n tokens has none.
    """
    lengths = np.maximum(np.diff(batch.offsets) - (n - 1), 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    starts = np.arange(offsets[-1]) + np.repeat(batch.offsets[:-1] - offsets[:-1], lengths)
    if len(starts) == 0:
        return np.zeros(0, dtype=np.uint64), offsets
    tokens = mix(batch.ids.astype(np.uint64))
    windows = len(tokens) - (n - 1)
    rolling = tokens[:windows].copy()
    for at in range(1, n):
        rolling *= _ODD
        rolling += tokens[at : at + windows]
    return rolling[starts], offsets


def equal_runs(hashes: Hashes) -> Iterator[Places]:
    """The places of values that are there more than once, ordered by value and then by place, some values at a time.

    The values are taken by four of their bits, so that sorting needs a sixteenth of the memory.
    """
    lane = hashes.view(np.uint8)[::8] & (_LANES - 1)
    for each in range(_LANES):
        at = np.flatnonzero(lane == each)
        at = at[np.argsort(hashes[at], kind="stable")]
        value = hashes[at]
        repeated = np.zeros(len(at), dtype=np.bool_)
        repeated[1:] = value[1:] == value[:-1]
        repeated[:-1] |= repeated[1:]
        yield at[repeated]


def first_of_run(values: Hashes, places: Places) -> Places:
    """For each of places (n,), whose equal values are neighbours: the first place that has its value."""
    if len(values) == 0:
        return places
    begins = np.concatenate([[True], values[1:] != values[:-1]])
    firsts: Places = places[begins][np.cumsum(begins) - 1]
    return firsts


def _sums(values: Hashes, offsets: Offsets) -> Hashes:
    """(documents,): the sum of each document's values, modulo 2^64, also of documents without any."""
    running = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(values)])
    sums: Hashes = running[offsets[1:]] - running[offsets[:-1]]
    return sums

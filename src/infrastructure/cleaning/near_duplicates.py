"""Documents that are almost the same: MinHash signatures of their 5-grams, compared where a band of them is equal.

The share of equal places of two signatures estimates the Jaccard similarity of the documents' sets of 5-grams (Broder
1997, "On the resemblance and containment of documents"). Cut into bands of `rows` places, two documents of similarity s
meet in one of `bands` with probability 1 - (1 - s^rows)^bands (Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", 3.4); what meets is then compared by the whole signatures.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallgpt.domain.errors import ConfigError
from smallgpt.infrastructure.cleaning.documents import DocumentTokens, Offsets
from smallgpt.infrastructure.cleaning.duplicates import Duplicates, Mask, kept_firsts
from smallgpt.infrastructure.cleaning.hashes import Hashes, Places, equal_runs, first_of_run, gram_hashes
from smallgpt.infrastructure.permutation import mix

GRAM = 5
PLACES = 128
"""Of a signature; an estimate's standard deviation is √(s (1 - s) / 128), 0.035 at 0.8."""
THRESHOLD = 0.8
_RECALL = 0.99
"""Probability at least, that documents exactly as similar as the threshold meet in a band."""
_SEED = 42
_ROUNDS = 8
_SIGNED_AT_ONCE = 2**13
_COMPARED_AT_ONCE = 2**14
Signatures = npt.NDArray[np.uint32]
Roots = npt.NDArray[np.int32]


@dataclass(frozen=True)
class NearDuplicates(Duplicates):
    """As `Duplicates`, of documents that are chained by similarity: one of each cluster stays."""

    clusters: int
    threshold: float


def near_duplicates(
    train: DocumentTokens,
    validation: DocumentTokens,
    folder: Path,
    *,
    threshold: float = THRESHOLD,
    exact: Duplicates | None = None,
) -> NearDuplicates:
    """Clusters of documents that are chained by estimated similarities of at least threshold.

    The first of a cluster stays; training's go when one of validation is in it. The copies that `exact` has found are
    left out here, and marked to keep. The same documents give the same result.

    `folder`, which exists, takes temporary files of 680 bytes a document at the usual threshold. Memory: 13 bytes a
    document, and what the system keeps of those files. Documents of fewer than 5 tokens have no 5-grams and are only
    ever equal; of one with more than a million, the first million counts. Raises ConfigError without the package rensa,
    and for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"near-duplicate threshold {threshold:g} must lie above 0 and not above 1")
    rows = rows_for(threshold)
    kept = None if exact is None else np.concatenate([exact.keep_validation, exact.keep_train])
    signed = _sign(train, validation, kept, folder, rows)
    documents = int(signed.sum())
    roots = np.arange(documents, dtype=np.int32)
    signatures = _mapped(_signature_file(folder), np.uint32, (documents, PLACES))
    for band in range(PLACES // rows):
        keys = _mapped(_band_file(folder, band), np.uint64, (documents,))
        for left, right in _meetings(keys, signatures, roots, threshold):
            _join(roots, left, right)
    copies = np.flatnonzero(roots != np.arange(documents, dtype=np.int32))
    firsts = _find(roots, copies)
    number = np.cumsum(signed, dtype=np.int32)  # a row's document is the first place with as many signed ones
    found = kept_firsts(
        len(validation),
        len(train),
        np.searchsorted(number, copies.astype(np.int32) + 1),
        np.searchsorted(number, firsts + 1),
    )
    return NearDuplicates(**vars(found), clusters=len(np.unique(firsts)), threshold=threshold)


def rows_for(threshold: float) -> int:
    """Places in a band: as many as still let documents of this similarity meet with probability 0.99."""
    fitting = (rows for rows in range(PLACES, 0, -1) if 1 - (1 - threshold**rows) ** (PLACES // rows) >= _RECALL)
    return next(fitting, 1)


def _sign(
    train: DocumentTokens,
    validation: DocumentTokens,
    kept: Mask | None,
    folder: Path,
    rows: int,
) -> Mask:
    """Write the signatures, and a key for each band of them, of the documents long enough; says which these are."""
    signed = np.zeros(len(validation) + len(train), dtype=np.bool_)
    with ExitStack() as open_files:
        whole = open_files.enter_context(_signature_file(folder).open("wb"))
        bands = [open_files.enter_context(_band_file(folder, at).open("wb")) for at in range(PLACES // rows)]
        for number, signatures in _signed(train, validation, kept):
            signed[number] = True
            whole.write(signatures.tobytes())
            for at, file in enumerate(bands):
                file.write(_band_keys(signatures[:, at * rows : (at + 1) * rows]).tobytes())
    return signed


def _signed(
    train: DocumentTokens, validation: DocumentTokens, kept: Mask | None
) -> Iterator[tuple[Places, Signatures]]:
    """Document numbers, validation's before train's, and their signatures (documents, PLACES)."""
    for before, split in ((0, validation), (len(validation), train)):
        for batch in split.batches():
            if batch.skipped:
                continue
            grams, offsets = gram_hashes(batch, GRAM)
            number = np.arange(before + batch.first, before + batch.documents.stop)
            chosen = np.diff(offsets) > 0
            if kept is not None:
                chosen &= kept[number]
            for at in range(0, len(number), _SIGNED_AT_ONCE):
                here = slice(at, at + _SIGNED_AT_ONCE)
                signatures = _signatures(grams, offsets[at : at + _SIGNED_AT_ONCE + 1])
                yield number[here][chosen[here]], signatures[chosen[here]]


def _signatures(grams: Hashes, offsets: Offsets) -> Signatures:
    """(documents, PLACES) of the documents between these offsets. The library hands them out as Python's numbers."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise ConfigError("near-duplicates need the package rensa: pip install 'smallgpt[clean]'") from None

    first, last = int(offsets[0]), int(offsets[-1])
    rows = (offsets - first).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(mix(grams[first:last]), rows, PLACES, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(-1, PLACES)


def _band_keys(band: Signatures) -> Hashes:
    """(documents,): a number for a band (documents, rows), equal for equal bands."""
    keys = np.zeros(len(band), dtype=np.uint64)
    for place in band.T:
        keys = mix(keys ^ place)
    return keys


def _meetings(keys: Hashes, signatures: Signatures, roots: Roots, threshold: float) -> Iterator[tuple[Places, Places]]:
    """Pairs of rows that are equal in a band and similar as a whole.

    Those with the same key are compared with the first of them; what is not similar to it, with the first of the rest,
    and so on for some rounds, which only a band that says nothing would outlast.
    """
    for at in equal_runs(keys):
        for _ in range(_ROUNDS):
            first = first_of_run(keys[at], at)
            at, first = at[first != at], first[first != at]
            if len(at) == 0:
                break
            alike = _find(roots, at) == _find(roots, first)
            alike[~alike] = _similar(signatures, at[~alike], first[~alike], threshold)
            yield first[alike], at[alike]
            at = at[~alike]


def _similar(signatures: Signatures, left: Places, right: Places, threshold: float) -> Mask:
    """(pairs,): whether the estimated similarity reaches threshold."""
    similar = np.zeros(len(left), dtype=np.bool_)
    for at in range(0, len(left), _COMPARED_AT_ONCE):
        here = slice(at, at + _COMPARED_AT_ONCE)
        equal = (signatures[left[here]] == signatures[right[here]]).sum(axis=1)
        similar[here] = equal >= threshold * PLACES
    return similar


def _join(roots: Roots, left: Places, right: Places) -> None:
    """Put the clusters of each pair together: the higher root points to the lower, so that a root is a cluster's first."""
    while True:
        a, b = _find(roots, left), _find(roots, right)
        apart = a != b
        if not apart.any():
            return
        left, right = left[apart], right[apart]
        np.minimum.at(roots, np.maximum(a, b)[apart], np.minimum(a, b)[apart])


def _find(roots: Roots, rows: Places) -> Roots:
    """(rows,): the root of each; the rows point to it directly from now on."""
    at = roots[rows]
    while ((above := roots[at]) != at).any():
        at = above
    roots[rows] = at
    return at


def _signature_file(folder: Path) -> Path:
    return folder / "signatures.tmp"


def _band_file(folder: Path, band: int) -> Path:
    return folder / f"band-{band:03}.tmp"


def _mapped(path: Path, dtype: type[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A temporary file as an array; a file of nothing cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r", shape=shape) if shape[0] else np.zeros(shape, dtype=dtype)

"""How much of the validation split training has seen, as n-grams of tokens.

13 is the length that GPT-3 was checked with (Brown et al. 2020, arXiv 2005.14165, appendix C), there in words: 13 tokens
are about ten words. The check sees what is word for word the same, not what is said again in other words.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smallgpt.infrastructure.cleaning.documents import Batch, DocumentTokens, Offsets
from smallgpt.infrastructure.cleaning.hashes import Hashes, batch_hashes, gram_hashes

GRAM = 13
MOST_GRAMS = 5_000_000
"""Of validation that are looked for; with more, every second, third, ... document is checked."""
WORST = 10


@dataclass(frozen=True)
class Contamination:
    """What part of each validation document training has."""

    n: int
    shares: npt.NDArray[np.float32]
    """(documents,): of a document's n-grams, those seen in training; nan for documents not checked."""
    grams: int
    seen: int
    """Of these, in training."""

    @property
    def checked(self) -> int:
        """Validation documents looked at."""
        return int((~np.isnan(self.shares)).sum())

    @property
    def share(self) -> float:
        """Of all n-grams, those seen in training."""
        return self.seen / max(self.grams, 1)

    def documents_above(self, share: float) -> int:
        """Documents of which at least this share has been seen; 0 counts those with any."""
        return int((self.shares > 0).sum() if share == 0 else (self.shares >= share).sum())

    @property
    def worst(self) -> tuple[int, ...]:
        """Numbers of the validation documents with the largest shares, if any was seen."""
        shares = np.nan_to_num(self.shares)
        order = np.argsort(-shares, kind="stable")[:WORST]
        return tuple(order[shares[order] > 0].tolist())


def contamination(
    train: DocumentTokens, validation: DocumentTokens, *, n: int = GRAM, most_grams: int = MOST_GRAMS
) -> Contamination:
    """Look up the validation split's n-grams in all of training. A document of fewer than n tokens is one n-gram: itself.

    Memory: 9 bytes an n-gram of validation, at most `most_grams`, and a filter of at most 64 MiB. Where a training
    document is longer than a batch, up to n - 1 n-grams a million tokens are missed.
    """
    step = max(1, -(-sum(len(piece.tokens) for piece in validation.pieces) // most_grams))
    asked = [_checked(batch, n, step)[0] for batch in validation.batches()]
    wanted = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *asked]))
    del asked
    found = _seen(train, wanted, n)
    grams, seen = np.zeros((2, len(validation)), dtype=np.int64)
    for batch in validation.batches():
        hashes, offsets = _checked(batch, n, step)
        known = np.concatenate([[0], np.cumsum(found[np.searchsorted(wanted, hashes)])])
        grams[batch.documents] += np.diff(offsets)
        seen[batch.documents] += known[offsets[1:]] - known[offsets[:-1]]
    shares = np.full(len(validation), np.nan, dtype=np.float32)
    np.divide(seen, grams, out=shares, where=grams > 0, casting="unsafe")
    return Contamination(n, shares, int(grams.sum()), int(seen.sum()))


def _seen(train: DocumentTokens, wanted: Hashes, n: int) -> npt.NDArray[np.bool_]:
    """(wanted,): which of these sorted numbers training has. A filter by their low bits keeps most others from the search."""
    mask = np.uint64(2 ** min(26, max(10, (8 * len(wanted)).bit_length())) - 1)
    filled = np.zeros(int(mask) + 1, dtype=np.bool_)
    filled[wanted & mask] = True
    found = np.zeros(len(wanted), dtype=np.bool_)
    for batch in train.batches():
        hashes = _grams(batch, n)[0]
        hashes = np.sort(hashes[filled[hashes & mask]])
        at = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        found[at[wanted[at] == hashes]] = True
    return found


def _checked(batch: Batch, n: int, step: int) -> tuple[Hashes, Offsets]:
    """`_grams` of every step-th document; the others have none."""
    hashes, offsets = _grams(batch, n)
    lengths = np.diff(offsets)
    chosen = np.arange(batch.documents.start, batch.documents.stop) % step == 0
    return hashes[np.repeat(chosen, lengths)], np.concatenate([[0], np.cumsum(lengths * chosen)])


def _grams(batch: Batch, n: int) -> tuple[Hashes, Offsets]:
    """As `gram_hashes`; a document of fewer tokens gives the number of its whole text."""
    hashes, offsets = gram_hashes(batch, n)
    lengths = np.diff(batch.offsets)
    short = (lengths > 0) & (lengths < n) & (batch.skipped == 0)
    if not short.any():
        return hashes, offsets
    whole = batch_hashes(batch)[short]
    return np.insert(hashes, offsets[:-1][short], whole), offsets + np.concatenate([[0], np.cumsum(short)])

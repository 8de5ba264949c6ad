"""The statistics card of a data folder: what its arrays say about documents, lengths and vocabulary."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from smallgpt.infrastructure.cleaning.contamination import Contamination
from smallgpt.infrastructure.cleaning.documents import DocumentTokens, TokenSlices
from smallgpt.infrastructure.cleaning.duplicates import Duplicates
from smallgpt.infrastructure.cleaning.near_duplicates import NearDuplicates
from smallgpt.infrastructure.manifest import Manifest

BLOCK_SIZES = (128, 256, 512, 1024, 2048)
_AT_ONCE = 2**20
Split = Literal["train", "validation"]
LengthsArray = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Cut:
    """What windows of block_size tokens leave of documents that start with them."""

    block_size: int
    documents: float
    """Share of the documents that are longer."""
    tokens: float
    """Share of all tokens that lie beyond the first block_size of their document."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a split's documents, end-of-text not counted."""

    shortest: int
    median: float
    mean: float
    p90: float
    p99: float
    longest: int
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class SplitCard:
    """A split. None: what adopted token files do not tell."""

    tokens: int
    """End-of-text included."""
    documents: int | None
    text_bytes: int | None
    bytes_per_token: float | None
    """End-of-text not counted, where documents are known."""
    lengths: Lengths | None


@dataclass(frozen=True)
class Coverage:
    """Which ids of the vocabulary occur."""

    used: int
    """In training."""
    for_99_percent: int
    """The fewest ids that make 99 % of training's tokens."""
    never: int
    """In neither split."""
    validation_only: int
    """Asked for in validation, but never trained."""


@dataclass(frozen=True)
class Card:
    """All that `dataset.md` says. None: not looked for, or not possible without knowing where documents begin."""

    manifest: Manifest
    splits: Mapping[Split, SplitCard]
    coverage: Coverage
    exact: Duplicates | None = None
    near: NearDuplicates | None = None
    contamination: Contamination | None = None

    def as_dict(self) -> dict[str, Any]:
        """What `--json` shows."""
        facts = self.manifest
        return {
            "source": facts.source,
            "revision": facts.revision,
            "tokenizer": None if facts.tokenizer is None else facts.tokenizer.model_dump(),
            "vocab_size": facts.vocab_size,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "coverage": asdict(self.coverage),
            "baselines": facts.baselines,
            "exact_duplicates": None if self.exact is None else _removals(self.exact),
            "near_duplicates": None if self.near is None else _near(self.near),
            "contamination": None if self.contamination is None else _contamination(self.contamination),
        }


def document_lengths(documents: DocumentTokens) -> LengthsArray:
    """(documents,): tokens of each, end-of-text not counted; from the starts, so the tokens are not read."""
    lengths = np.empty(len(documents), dtype=np.uint32)
    separator = 0 if documents.end_of_text is None else 1
    done = 0
    for piece in documents.pieces:
        count = len(piece.starts)
        for at in range(0, count, _AT_ONCE):
            starts = np.asarray(piece.starts[at : at + _AT_ONCE + 1])
            if at + _AT_ONCE >= count:
                end = len(piece.tokens)
                cut = separator == 1 and piece.tokens[end - 1 : end].tolist() != [documents.end_of_text]
                starts = np.append(starts, end + cut)
            lengths[done : done + len(starts) - 1] = np.diff(starts) - separator
            done += len(starts) - 1
    return lengths


def describe_split(manifest: Manifest, split: Split, lengths: LengthsArray | None) -> SplitCard:
    """A split's numbers; lengths is None where documents are not known."""
    facts = manifest.splits[split]
    of_text = facts.tokens if lengths is None else int(lengths.sum(dtype=np.int64))
    return SplitCard(
        tokens=facts.tokens,
        documents=facts.documents if lengths is None else len(lengths),
        text_bytes=facts.text_bytes,
        bytes_per_token=None if facts.text_bytes is None else facts.text_bytes / max(of_text, 1),
        lengths=None if lengths is None or not len(lengths) else describe_lengths(lengths),
    )


def describe_lengths(lengths: LengthsArray) -> Lengths:
    """Of (documents,), at least one. Quantiles are those of a document that is there: the smallest length that suffices."""
    ascending = np.sort(lengths)
    total = int(ascending.sum(dtype=np.int64))

    def quantile(share: float) -> int:
        return int(ascending[int(np.ceil(share * len(ascending))) - 1])

    cuts = []
    for size in BLOCK_SIZES:
        longer = ascending[np.searchsorted(ascending, np.uint32(size), side="right") :]
        beyond = int(longer.sum(dtype=np.int64)) - size * len(longer)
        cuts.append(Cut(size, len(longer) / len(ascending), beyond / max(total, 1)))
    return Lengths(
        shortest=int(ascending[0]),
        median=quantile(0.5),
        mean=total / len(ascending),
        p90=quantile(0.9),
        p99=quantile(0.99),
        longest=int(ascending[-1]),
        cuts=tuple(cuts),
    )


def describe_coverage(train: TokenSlices, validation: TokenSlices, vocab_size: int) -> Coverage:
    """Counted over every token of both splits, end-of-text included."""
    trained, asked = (_id_counts(tokens, vocab_size) for tokens in (train, validation))
    most = np.cumsum(np.sort(trained)[::-1])
    return Coverage(
        used=int((trained > 0).sum()),
        for_99_percent=int(np.searchsorted(most, 0.99 * most[-1])) + 1,
        never=int(((trained == 0) & (asked == 0)).sum()),
        validation_only=int(((trained == 0) & (asked > 0)).sum()),
    )


def _id_counts(tokens: TokenSlices, vocab_size: int) -> npt.NDArray[np.int64]:
    counts = np.zeros(vocab_size, dtype=np.int64)
    for at in range(0, len(tokens), _AT_ONCE):
        counts += np.bincount(tokens[at : at + _AT_ONCE], minlength=vocab_size)
    return counts


def _removals(found: Duplicates) -> dict[str, Any]:
    return {
        "train": found.train,
        "train_in_validation": found.across,
        "validation": found.validation,
        "examples": [[list(first), list(copy)] for first, copy in found.examples],
    }


def _near(found: NearDuplicates) -> dict[str, Any]:
    return {**_removals(found), "clusters": found.clusters, "threshold": found.threshold}


def _contamination(found: Contamination) -> dict[str, Any]:
    return {
        "n": found.n,
        "documents_checked": found.checked,
        "documents_with_any": found.documents_above(0),
        "documents_half": found.documents_above(0.5),
        "documents_most": found.documents_above(0.8),
        "share_of_ngrams": found.share,
        "worst": [{"document": number, "share": round(float(found.shares[number]), 4)} for number in found.worst],
    }

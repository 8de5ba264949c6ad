"""The finished parts become token files: one after the other, some documents left out, ids renumbered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt

from smallgpt.infrastructure.cleaning.documents import DocumentTokens, Piece
from smallgpt.infrastructure.manifest import SplitFacts, TokenFile, digest_of
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.tokenizers import AnyTokenizer
from smallgpt.infrastructure.tokenizing.draft import Draft, PartFacts, StreamFacts
from smallgpt.infrastructure.tokenizing.encoding import Split

SHARD_TOKENS = 2**30
"""A token file has at most that many, unless a single part has more."""

TOKENS_AT_ONCE = 2**22

Ids = npt.NDArray[np.unsignedinteger]
Keep = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _StoredIds:
    """The ids of a finished part, read a slice at a time: a corpus may have more parts than a process may open files."""

    path: Path
    dtype: str
    tokens: int

    def __len__(self) -> int:
        return self.tokens

    def __getitem__(self, wanted: slice, /) -> Ids:
        start, stop, _ = wanted.indices(self.tokens)
        dtype = np.dtype(self.dtype).newbyteorder("<")
        return np.fromfile(self.path, dtype, max(0, stop - start), offset=start * dtype.itemsize)


@dataclass(frozen=True)
class Parts:
    """The finished parts of one split, in order."""

    draft: Draft
    facts: Sequence[PartFacts]
    split: Split
    dtype: Literal["uint16", "uint32"]
    tokenizer: AnyTokenizer

    def streams(self) -> list[tuple[str, StreamFacts]]:
        """Key and facts of each part that has documents of this split."""
        both = [(part.key, part.train if self.split == "train" else part.validation) for part in self.facts]
        return [(key, stream) for key, stream in both if stream.documents]

    def as_documents(self) -> DocumentTokens:
        """The same documents, for the checks of `cleaning`."""
        pieces = []
        for key, stream in self.streams():
            ends = np.cumsum(self._lengths(key) + self.separator)
            pieces.append(Piece(self._ids(key, stream), np.append(0, ends[:-1])))
        return DocumentTokens(tuple(pieces), self.tokenizer.end_of_text)

    def batches(self) -> Iterator[tuple[Ids, npt.NDArray[np.int64]]]:
        """The documents in order, some at a time: ids (tokens,) and lengths (documents,)."""
        for key, stream in self.streams():
            ids, lengths = self._ids(key, stream), self._lengths(key)
            ends = np.cumsum(lengths + self.separator)
            for first, last in _runs(ends):
                start = ends[first - 1] if first else 0
                yield ids[start : ends[last - 1]], lengths[first:last]

    def _ids(self, key: str, stream: StreamFacts) -> _StoredIds:
        return _StoredIds(self.draft.ids(key, self.split), self.dtype, stream.tokens)

    def _lengths(self, key: str) -> npt.NDArray[np.int64]:
        return np.fromfile(self.draft.ids(key, self.split).with_suffix(".lengths"), "<i8")

    @property
    def documents(self) -> int:
        """In all parts."""
        return sum(stream.documents for _, stream in self.streams())

    @property
    def separator(self) -> int:
        """Ids after each document: 1 with an end-of-text."""
        return int(self.tokenizer.end_of_text is not None)


def used_ids(parts: Parts) -> npt.NDArray[np.bool_]:
    """(vocab_size,): whether an id occurs."""
    used = np.zeros(parts.tokenizer.vocab_size, dtype=np.bool_)
    for ids, _ in parts.batches():
        used |= np.bincount(ids, minlength=len(used)) > 0
    return used


def _runs(ends: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Documents first..last - 1 of which each run has about TOKENS_AT_ONCE tokens, given where each document ends."""
    first = 0
    while first < len(ends):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + TOKENS_AT_ONCE, side="right")))
        yield first, last
        first = last


def merge(
    parts: Parts,
    folder: Path,
    dtype: Literal["uint16", "uint32"],
    *,
    keep: Keep | None = None,
    renumber: npt.NDArray[np.uint32] | None = None,
    progress: Progress | None = None,
) -> SplitFacts:
    """Write SPLIT.bin (or SPLIT-00000.bin, ...) and SPLIT.starts.npy of the documents that `keep` (documents,) has.

    renumber (vocab_size,) gives each id its new number. What the files hold depends on the parts' order alone.
    """
    documents = parts.documents if keep is None else int(keep.sum())
    starts = np.lib.format.open_memmap(folder / f"{parts.split}.starts.npy", "w+", np.dtype("<i8"), (documents,))
    writer = _Shards(folder, parts.split, dtype)
    text_bytes = sum(stream.text_bytes for _, stream in parts.streams())
    byte_lengths = parts.tokenizer.byte_lengths()
    at = written = longest = 0
    for ids, lengths in parts.batches():
        at += len(lengths)
        if keep is not None:
            kept = keep[at - len(lengths) : at]
            of_kept = np.repeat(kept, lengths + parts.separator)
            text_bytes -= int(byte_lengths[ids[~of_kept]].sum())
            ids, lengths = ids[of_kept], lengths[kept]
        ends = np.cumsum(lengths + parts.separator)
        starts[written : written + len(lengths)] = writer.tokens + ends - lengths - parts.separator
        written += len(lengths)
        longest = max(longest, int(lengths.max(initial=0)))
        writer.add(ids if renumber is None else renumber[ids])
        if progress:
            progress(at, parts.documents, f"{parts.split} documents merged")
    starts.flush()
    files = writer.close()
    return SplitFacts(
        files=files,
        tokens=writer.tokens,
        sha256=digest_of(files),
        highest_id=writer.highest,
        documents=documents,
        starts=f"{parts.split}.starts.npy",
        text_bytes=text_bytes,
        longest_document=longest,
    )


class _Shards:
    """Token files that follow each other; one that stays alone is called SPLIT.bin."""

    def __init__(self, folder: Path, split: Split, dtype: str) -> None:
        self.folder, self.split = folder, split
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.files: list[TokenFile] = []
        self.tokens = self.highest = 0
        self._open()

    def add(self, ids: Ids) -> None:
        if self.in_file and self.in_file + len(ids) > SHARD_TOKENS:
            self._end()
            self._open()
        content = np.ascontiguousarray(ids, dtype=self.dtype)
        self.file.write(content.data)
        self.digest.update(content.data)
        self.in_file += len(ids)
        self.tokens += len(ids)
        self.highest = max(self.highest, int(ids.max(initial=0)))

    def close(self) -> tuple[TokenFile, ...]:
        self._end()
        if len(self.files) == 1:
            name = f"{self.split}.bin"
            (self.folder / self.files[0].name).rename(self.folder / name)
            self.files = [self.files[0].model_copy(update={"name": name})]
        return tuple(self.files)

    def _open(self) -> None:
        self.name = f"{self.split}-{len(self.files):05}.bin"
        self.file: IO[bytes] = (self.folder / self.name).open("wb")
        self.digest, self.in_file = sha256(), 0

    def _end(self) -> None:
        self.file.close()
        self.files.append(TokenFile(name=self.name, tokens=self.in_file, sha256=self.digest.hexdigest()))

"""A data folder against its manifest: every byte, every count, every document's start, in one reading."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from smallgpt.domain.errors import DataError, SmallGPTError
from smallgpt.infrastructure.manifest import TokenFile, digest_of, read_manifest
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.token_store import SPLITS, DataFolder, TokenStore, check_size, open_store
from smallgpt.infrastructure.tokens import Ids, Places

_BYTES_AT_ONCE = 2**23
_STARTS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Verdict:
    """What was found about a file of the folder."""

    file: str
    problem: str | None
    """One or two lines that say what differs; None: it is what the manifest says."""


def verify_store(folder: Path, progress: Progress | None = None) -> TokenStore:
    """`open_store`, and everything that `verify` looks at. Raises DataError for the first file that differs."""
    store = open_store(folder)
    for verdict in verify(folder, progress):
        if verdict.problem is not None:
            raise DataError(verdict.problem)
    return store


def verify(path: Path, progress: Progress | None = None) -> Iterator[Verdict]:
    """Look at each file of a data folder in turn, with bounded memory.

    progress is told (bytes read, of all, what). Raises DataError when there is no manifest to compare with.
    """
    folder = DataFolder(path, read_manifest(path))
    facts = [folder.facts(split) for split in SPLITS]
    told = _Told(progress, sum(each.tokens for each in facts) * folder.manifest.item_size)
    for split in SPLITS:
        yield from _verify_split(folder, split, told)
    if folder.manifest.tokenizer is not None:
        yield Verdict("tokenizer.json", _complaint_about_tokenizer(folder))


class _Told:
    """Progress over all files."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, size: int) -> None:
        self.done += size
        if self.progress:
            self.progress(self.done, self.total, "bytes verified")


def _verify_split(folder: DataFolder, split: str, told: _Told) -> Iterator[Verdict]:
    facts = folder.facts(split)
    starts, problem = None, None
    if facts.starts is not None:
        try:
            starts = folder.starts(split)
            problem = _complaint_about_order(folder.path / facts.starts, starts, facts.tokens)
        except SmallGPTError as error:
            problem = str(error)
    reading = _Reading(folder, None if problem else starts)
    for file in facts.files:
        yield Verdict(file.name, reading.complaint_about(file, told))
    if facts.starts is not None:
        if problem is None and reading.sound and reading.bad_start is not None:
            problem = (
                f"{folder.path / facts.starts}: a document starts at {reading.bad_start}, but no end-of-text is before it; "
                "prepare the data again"
            )
        yield Verdict(facts.starts, problem)
    if facts.sha256 != digest_of(facts.files):
        yield Verdict(
            "dataset.json",
            f"{folder.path / 'dataset.json'}: the {split} split's sha256 is not that of its files; prepare the data again",
        )
    elif reading.sound and reading.highest != facts.highest_id:
        yield Verdict(
            "dataset.json",
            f"{folder.path / 'dataset.json'}: the {split} split's highest_id is {facts.highest_id}, "
            f"but {reading.highest} is the highest in its files; prepare the data again",
        )


class _Reading:
    """The files of a split in their order: digests, ids, and whether documents start behind an end-of-text."""

    def __init__(self, folder: DataFolder, starts: Places | None) -> None:
        self.folder, self.starts = folder, starts
        self.dtype = np.dtype(folder.manifest.dtype).newbyteorder("<")
        tokenizer = folder.manifest.tokenizer
        self.end_of_text = None if tokenizer is None else tokenizer.end_of_text
        self.place = 0
        self.highest = 0
        self.bad_start: int | None = None
        self.sound = True
        """Until a file differs: what follows from it is not held against others."""

    def complaint_about(self, file: TokenFile, told: _Told) -> str | None:
        complaint = self._complaint(file, told)
        self.sound &= complaint is None
        return complaint

    def _complaint(self, file: TokenFile, told: _Told) -> str | None:
        path, begin = self.folder.path / file.name, self.place
        self.place += file.tokens
        try:
            check_size(path, file.tokens, self.dtype.itemsize)
            digest, highest = self._read(path, begin, told)
        except (DataError, OSError) as error:
            told.add(file.tokens * self.dtype.itemsize)
            return str(error)
        vocab_size = self.folder.manifest.vocab_size
        if highest >= vocab_size:
            return (
                f"{path}: token id {highest}, but the vocabulary ends at {vocab_size - 1}; "
                "the file is damaged or of another tokenizer: prepare the data again"
            )
        if digest != file.sha256:
            return (
                f"{path}: SHA-256 {digest[:12]}, but dataset.json has {file.sha256[:12]}; "
                "the file was changed: prepare the data again"
            )
        return None

    def _read(self, path: Path, place: int, told: _Told) -> tuple[str, int]:
        digest, highest = sha256(), 0
        buffer = bytearray(_BYTES_AT_ONCE)
        with path.open("rb") as file:
            while size := file.readinto(buffer):
                digest.update(memoryview(buffer)[:size])
                ids = np.frombuffer(buffer, dtype=self.dtype, count=size // self.dtype.itemsize)
                highest = max(highest, int(ids.max()))
                self._check_starts(ids, place)
                place += len(ids)
                told.add(size)
        self.highest = max(self.highest, highest)
        return digest.hexdigest(), highest

    def _check_starts(self, ids: Ids, place: int) -> None:
        """Starts from place + 1 to place + len(ids): what is before them is among these ids."""
        if self.starts is None or self.end_of_text is None or self.bad_start is not None:
            return
        low, high = np.searchsorted(self.starts, [place + 1, place + len(ids) + 1])
        starts = self.starts[low:high]
        bad = starts[ids[starts - place - 1] != self.end_of_text]
        self.bad_start = int(bad[0]) if len(bad) else None


def _complaint_about_order(path: Path, starts: Places, tokens: int) -> str | None:
    """Document starts must grow, from 0 on, within the stream."""
    before = -1
    for at in range(0, len(starts), _STARTS_AT_ONCE):
        some = starts[at : at + _STARTS_AT_ONCE]
        falling = np.flatnonzero(np.diff(some, prepend=before) <= 0)
        if len(falling) or some[-1] >= tokens:
            number = int(falling[0]) if len(falling) else len(some) - 1
            return (
                f"{path}: document {at + number} starts at {some[number]}, after {before if number == 0 else some[number - 1]} "
                f"and with {tokens} tokens in all; prepare the data again"
            )
        before = int(some[-1])
    return None


def _complaint_about_tokenizer(folder: DataFolder) -> str | None:
    try:
        _ = TokenStore([folder]).tokenizer
    except DataError as error:
        return str(error)
    return None

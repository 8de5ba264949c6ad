"""What is done so far of a data folder: the finished parts, in a folder beside it that no command takes for data."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.files import sha256 as digest
from smallgpt.infrastructure.files import write_json

DONE, WHOLE, REPLACED = "done", "whole", "replaced"
"""In a draft whose whole folder is taking its place; that folder; and the one whose place it takes."""


@dataclass(frozen=True)
class StreamFacts:
    """The documents of one split in one part."""

    tokens: int
    documents: int
    text_bytes: int
    sha256: str


@dataclass(frozen=True)
class PartFacts:
    """A finished part."""

    key: str
    """Which part: see PartJob."""
    train: StreamFacts
    validation: StreamFacts


@dataclass(frozen=True)
class Draft:
    """Files of finished and of unfinished parts. A part is finished when its .json is there, which is written last."""

    folder: Path

    @property
    def whole(self) -> Path:
        """The data folder that the parts are merged into; it takes its place when it is complete."""
        return self.folder / WHOLE

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer that the parts are encoded with."""
        return self.folder / "tokenizer.json"

    def ids(self, key: str, split: str) -> Path:
        """A finished part's token ids; the lengths of its documents are beside it, in .lengths (little-endian int64)."""
        return self.folder / f"{key}.{split}.ids"

    def unfinished(self, key: str, split: str) -> Path:
        """Where they are while they grow: a name of this process's own."""
        return self.folder / f"{key}.{split}.{os.getpid()}.growing"

    def finish(self, facts: PartFacts) -> None:
        """Give this process's files of a part their names, and say that it is finished."""
        for split in ("train", "validation"):
            growing, ids = self.unfinished(facts.key, split), self.ids(facts.key, split)
            growing.with_suffix(".lengths.growing").rename(ids.with_suffix(".lengths"))
            growing.rename(ids)
        write_json(self._facts_file(facts.key), asdict(facts))

    def finished(self, key: str) -> PartFacts | None:
        """What a part has, if it is finished and its ids are those that were written."""
        try:
            document = json.loads(self._facts_file(key).read_text(encoding="utf-8"))
            facts = PartFacts(key, StreamFacts(**document["train"]), StreamFacts(**document["validation"]))
            for split, stream in (("train", facts.train), ("validation", facts.validation)):
                ids = self.ids(key, split)
                if digest(ids) != stream.sha256 or ids.with_suffix(".lengths").stat().st_size != 8 * stream.documents:
                    return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return facts

    def finished_parts(self) -> int:
        """How many parts are finished."""
        return sum(1 for _ in self.folder.glob("*.part.json"))

    def _facts_file(self, key: str) -> Path:
        return self.folder / f"{key}.part.json"


@contextmanager
def draft_of(out: Path, plan: Iterable[str]) -> Iterator[Draft]:
    """The draft of a data folder, held by this process alone; with what an earlier one has finished.

    plan is what decides the ids beside the parts themselves: a draft of another plan is thrown away. Raises DataError when
    another process is at work on the same folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = _folder(out)
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _check_there(folder / "lock", lock.fileno())
        except (BlockingIOError, FileNotFoundError):
            raise DataError(f"{out}: another process is preparing this folder; wait, or choose another --out") from None
        _settle(folder, out)
        key = _digest(plan)
        if _read(folder / "plan") != key:
            _clear(folder)
            write_json(folder / "plan", key)
        for left in folder.glob("*.growing"):
            left.unlink()
        yield Draft(folder)


def _check_there(path: Path, descriptor: int) -> None:
    """Raises FileNotFoundError when a lock's file was removed, with the draft, by the process that held it before."""
    if path.stat().st_ino != os.fstat(descriptor).st_ino:
        raise FileNotFoundError(path)


def forget_if_done(out: Path) -> None:
    """Remove what is left of the draft of a folder that took its place just before its process was killed."""
    folder = _folder(out)
    if not (folder / DONE).exists():
        return
    with suppress(BlockingIOError, FileNotFoundError), (folder / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever holds it may be about to take the place
        _check_there(folder / "lock", lock.fileno())
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _settle(folder: Path, out: Path) -> None:
    """Go on from where a process was killed while its folder took its place."""
    if not (folder / DONE).exists():
        return
    if (folder / WHOLE).exists():
        if (folder / REPLACED).exists() and not out.exists():
            (folder / REPLACED).rename(out)
        (folder / DONE).unlink()
    else:
        _clear(folder)


def _folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.draft")


def discard(draft: Draft) -> None:
    """The folder is finished, or was refused: nothing of the draft is of use any more."""
    shutil.rmtree(draft.folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == "lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _digest(words: Iterable[str]) -> str:
    digest = sha256()
    for word in words:
        digest.update(word.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _read(path: Path) -> str | None:
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return key if isinstance(key, str) else None

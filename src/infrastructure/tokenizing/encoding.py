"""One part of a corpus becomes token ids on disk."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np

from smallgpt.infrastructure.corpora.parts import Part
from smallgpt.infrastructure.corpora.splitting import HeldOut
from smallgpt.infrastructure.tokenizers import AnyTokenizer
from smallgpt.infrastructure.tokenizing.draft import Draft, PartFacts, StreamFacts

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
CHARACTERS_AT_ONCE = 2**20
"""Encoded by one call, without Python's lock."""

Tell = Callable[[int, int], None]
"""Told how many UTF-8 bytes of text and tokens were done since the last call."""


@dataclass(frozen=True)
class Job:
    """What every part of a corpus has in common."""

    folder: Path
    """The draft's."""
    tokenizer: AnyTokenizer
    dtype: Literal["uint16", "uint32"]


@dataclass(frozen=True)
class PartJob:
    """A part, and which split its documents go to: by name, or by their hash."""

    number: int
    """Its place in the corpus."""
    part: Part
    side: Split | HeldOut

    @cached_property
    def key(self) -> str:
        """The same for the same part of the same files, split the same way; another one for any other."""
        side = self.side if isinstance(self.side, str) else self.side.key
        return sha256(f"{self.part!r} {side}".encode("utf-8", "surrogateescape")).hexdigest()[:24]


def encode_part(job: Job, part_job: PartJob, tell: Tell) -> PartFacts:
    """Encode a part's documents into the draft. Raises DataError for unusable text, OSError where the disk refuses."""
    draft = Draft(job.folder)
    streams = {split: _Stream(draft.unfinished(part_job.key, split), job, tell) for split in SPLITS}
    try:
        for text in part_job.part.documents():
            for split, share in _shares(text, part_job.side):
                streams[split].add(share)
        facts = PartFacts(part_job.key, **{split: streams[split].close() for split in SPLITS})
    finally:
        for stream in streams.values():
            stream.ids.close()
            stream.lengths.close()
    draft.finish(facts)
    return facts


def _shares(text: str, side: Split | HeldOut) -> list[tuple[Split, str]]:
    """The splits that a document goes to, and what of it goes there."""
    if not isinstance(side, HeldOut):
        return [(side, text)]
    return [(split, share) for split, share in zip(SPLITS, side.parts(text), strict=True) if share.strip()]


class _Stream:
    """The ids of a split's documents, written some at a time, counted and hashed on the way."""

    def __init__(self, path: Path, job: Job, tell: Tell) -> None:
        self.ids = path.open("wb")
        self.lengths = path.with_suffix(".lengths.growing").open("wb")
        self.tokenizer, self.tell = job.tokenizer, tell
        self.dtype = np.dtype(job.dtype).newbyteorder("<")
        self.digest = sha256()
        self.documents = self.tokens = self.text_bytes = 0
        self.waiting: list[str] = []
        self.characters = 0

    def add(self, text: str) -> None:
        self.waiting.append(text)
        self.characters += len(text)
        if self.characters >= CHARACTERS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        ids, lengths = self.tokenizer.encode_documents(self.waiting)
        content = ids.astype(self.dtype).tobytes()
        self.ids.write(content)
        self.lengths.write(lengths.astype("<i8").tobytes())
        self.digest.update(content)
        text_bytes = sum(len(text) if text.isascii() else len(text.encode()) for text in self.waiting)
        self.documents += len(lengths)
        self.tokens += len(ids)
        self.text_bytes += text_bytes
        self.tell(text_bytes, len(ids))
        self.waiting, self.characters = [], 0

    def close(self) -> StreamFacts:
        self.flush()
        return StreamFacts(
            tokens=self.tokens,
            documents=self.documents,
            text_bytes=self.text_bytes,
            sha256=self.digest.hexdigest(),
        )

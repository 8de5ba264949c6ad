"""What a corpus is to the rest: parts that can be read apart from each other, in any process."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol


class Part(Protocol):
    """A piece of a corpus that one process reads from its beginning. Equal parts give equal documents; picklable."""

    @property
    def name(self) -> str:
        """For messages: the file, and which piece of it."""

    @property
    def size(self) -> int:
        """Bytes to read, for progress and shares; compressed ones where it is compressed."""

    def documents(self) -> Iterator[str]:
        """Its texts, well formed (no lone surrogates), none of them only white space. Raises DataError."""


@dataclass(frozen=True)
class Documents:
    """The documents of parts, one after the other, read anew by every iteration."""

    parts: tuple[Part, ...]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(part.documents() for part in self.parts)


@dataclass(frozen=True)
class Corpus:
    """Where documents come from, cut into parts whose order and borders depend on the corpus alone."""

    name: str
    train: tuple[Part, ...]
    validation: tuple[Part, ...] | None = None
    """None: to be held out of train, by the hash of a document's text."""
    revision: str | None = None
    """The commit of a hub dataset."""

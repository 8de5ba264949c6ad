"""What is held out for validation: decided by a document's text, so that copies of it never fall on both sides."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from smallgpt.domain.errors import ConfigError, DataError

_HASHES = 2**64
_FEW = 400
"""With fewer distinct documents, chance would give too little or too much: they are chosen by size."""


@dataclass(frozen=True)
class HeldOut:
    """Which documents, by hash, are held out; of the one in `cut` only the text from its position on."""

    below: int = 0
    chosen: frozenset[int] = frozenset()
    cut: tuple[int, int] | None = None

    def parts(self, text: str) -> tuple[str, str]:
        """The training and the validation part of a document; one of them is mostly empty."""
        number = _hash(text)
        if self.cut and number == self.cut[0]:
            return text[: self.cut[1]], text[self.cut[1] :]
        return ("", text) if number < self.below or number in self.chosen else (text, "")


@dataclass(frozen=True)
class Side:
    """The training (0) or validation (1) documents of a corpus that can be read more than once."""

    documents: Iterable[str]
    held_out: HeldOut
    side: int

    def __iter__(self) -> Iterator[str]:
        for text in self.documents:
            part = self.held_out.parts(text)[self.side]
            if part.strip():
                yield part


def split_documents(documents: Iterable[str], share: float = 0.05, source: str = "the input") -> tuple[Side, Side]:
    """Training and validation documents; validation gets about `share` of the text. `documents` is read more than once.

    Raises ConfigError for a share outside (0, 1), DataError when there is no text.
    """
    if not 0 < share < 1:
        raise ConfigError(f"validation_share ({share:g}) must lie between 0 and 1")
    held_out = _choose(documents, share, source)
    return Side(documents, held_out, 0), Side(documents, held_out, 1)


def _choose(documents: Iterable[str], share: float, source: str) -> HeldOut:
    """Many documents: those whose hash is small. Few: enough by size or, where none fits, the end of the longest."""
    distinct: dict[int, str] = {}
    texts = (text for text in documents if text.strip())
    for text in texts:
        distinct.setdefault(_hash(text), text)
        if len(distinct) == _FEW:
            return HeldOut(below=int(share * _HASHES))
    if not distinct:
        raise DataError(f"{source}: no text, or only white space; give files with text in them")

    wanted = share * sum(map(len, distinct.values()))
    chosen, filled = set(), 0
    for number in sorted(distinct):
        size = len(distinct[number])
        if filled < wanted and filled + size <= 2 * wanted:
            chosen.add(number)
            filled += size
    if filled >= wanted / 2:
        return HeldOut(chosen=frozenset(chosen))
    longest = max(distinct, key=lambda number: (len(distinct[number]), number))
    return HeldOut(cut=(longest, _boundary(distinct[longest], len(distinct[longest]) - int(wanted))))


def _boundary(text: str, target: int) -> int:
    """Where to cut text: after a paragraph, line, sentence or word that ends shortly before target."""
    earliest = max(1, 2 * target - len(text))
    for end in ("\n\n", "\n", ". ", " "):
        at = text.rfind(end, earliest, target)
        if at >= 0:
            return at + len(end)
    return target


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")

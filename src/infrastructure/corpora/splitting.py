"""What is held out for validation: decided by a document's text, so that copies of it never fall on both sides."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil

from smallgpt.domain.errors import ConfigError, DataError

_HASHES = 2**64
_FEW, _MOST_WEIGHED = 400, 1_000_000
_HELD_OUT = 20
"""With fewer than 400 distinct documents, or of which fewer than 20 would be held out, chance would give too little or too
much: they are chosen by size. (No more than a million are looked at for that.)"""


@dataclass(frozen=True)
class HeldOut:
    """Which documents, by hash, are held out; of the one in `cut` only the text from its position on."""

    below: int = 0
    chosen: frozenset[int] = frozenset()
    cut: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """The same words for the same choice."""
        return f"{self.below} {sorted(self.chosen)} {self.cut}"

    def parts(self, text: str) -> tuple[str, str]:
        """The training and the validation part of a document; one of them is mostly empty."""
        number = _hash(text)
        if self.cut and number == self.cut[0]:
            return text[: self.cut[1]], text[self.cut[1] :]
        return ("", text) if number < self.below or number in self.chosen else (text, "")


def hold_out(documents: Iterable[str], share: float = 0.05, source: str = "the input") -> HeldOut:
    """Which documents are for validation: about `share` of the text. `documents` is read more than once.

    Of 400 distinct documents and more (20 / share, if that is more) each one's side depends on its own text alone, so it
    stays there when the corpus grows. Of fewer, on all of them; their order never matters.

    Raises ConfigError for a share outside (0, 1), DataError when there is no text.
    """
    if not 0 < share < 1:
        raise ConfigError(f"validation_share ({share:g}) must lie between 0 and 1")
    return _choose(documents, share, source)


def _choose(documents: Iterable[str], share: float, source: str) -> HeldOut:
    """Many documents: those whose hash is small. Few: enough by size or, where none fits, the end of the longest."""
    sizes: dict[int, int] = {}  # not the texts, which may be large
    few = min(max(_FEW, ceil(_HELD_OUT / share)), _MOST_WEIGHED)
    for text in documents:
        if text.strip():
            sizes.setdefault(_hash(text), len(text))
            if len(sizes) == few:
                return HeldOut(below=int(share * _HASHES))
    if not sizes:
        raise DataError(f"{source}: no text, or only white space; give files with text in them")

    wanted = share * sum(sizes.values())
    chosen, filled = set(), 0
    for number in sorted(sizes):
        if filled < wanted and filled + sizes[number] <= 2 * wanted:
            chosen.add(number)
            filled += sizes[number]
    if filled >= wanted / 2:
        return HeldOut(chosen=frozenset(chosen))
    longest = max(sizes, key=lambda number: (sizes[number], number))
    text = next(text for text in documents if _hash(text) == longest)
    return HeldOut(cut=(longest, _boundary(text, len(text) - int(wanted))))


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

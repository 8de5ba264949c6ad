"""Text files as parts: documents between separator lines."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.corpora.opening import open_bytes, range_name, read_range, reading_text

BLOCK_CHARACTERS = 2**23
"""Of a file that is read as a stream; a document of more than twice as many is cut."""


@dataclass(frozen=True)
class TextPart:
    """The documents of a text file, or of a range of its bytes that begins and ends between two documents.

    A document ends at a line that is just `separator` ("" stands for a blank line). encoding: when None, what the
    byte-order mark says, else UTF-8.
    """

    path: Path
    separator: str
    encoding: str | None
    size: int
    """Bytes of the range, compressed ones in a compressed file."""
    stamp: int
    """The file's time of change in nanoseconds: another one makes another part."""
    start: int | None = None
    """Offset of the range; None for the whole file."""

    @property
    def name(self) -> str:
        """See Part."""
        return range_name(self.path, self.start)

    def documents(self) -> Iterator[str]:
        """See Part."""
        with reading_text(self.path, self.encoding, self.start) as encoding:
            blocks = self._stream(encoding) if self.start is None else self._range(self.start, encoding)
            for block in blocks:
                if "\0" in block:
                    raise _nul(self.path, encoding)
                yield from documents_of(block, self.separator)

    def _range(self, start: int, encoding: str) -> Iterator[str]:
        text = read_range(self.path, start, self.size, encoding)
        yield text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text

    def _stream(self, encoding: str) -> Iterator[str]:
        """The text in blocks that end between two documents where they can."""
        with io.TextIOWrapper(open_bytes(self.path), encoding) as stream:
            waiting = ""
            while more := stream.read(BLOCK_CHARACTERS):
                waiting += more
                end = _last_border(waiting, self.separator)
                yield waiting[:end]
                waiting = waiting[end:]
            yield waiting


def documents_of(text: str, separator: str) -> Iterator[str]:
    """The documents of a text with "\\n" line ends; those of white space only are left out."""
    for document in _separating(separator).split(text):
        stripped = document.strip("\n")
        if stripped.strip():
            yield stripped


def _last_border(text: str, separator: str) -> int:
    """Where the last separator line of a block ends; in a document that fills two blocks, after a line or a word."""
    line = text.rfind("\n") + 1  # the last line may go on in the next block
    found = _separating(separator).finditer(text, 0, line)
    border = max((each.end() for each in found if each.start() < line), default=0)  # at `line` the pattern sees an end
    if border or len(text) < 2 * BLOCK_CHARACTERS:
        return border
    return line or text.rfind(" ") + 1 or len(text)


@cache
def _separating(separator: str) -> re.Pattern[str]:
    blank = r"[^\S\n]*"
    word = re.escape(separator.strip())
    # Two repeats with nothing between them would try every way to share a run of n spaces: n squared of them.
    return re.compile(f"^{blank}{word}{blank}$" if word else f"^{blank}$", re.MULTILINE)


def _nul(path: Path, encoding: str) -> DataError:
    with io.TextIOWrapper(open_bytes(path), encoding) as lines:
        number = next((number for number, line in enumerate(lines, start=1) if "\0" in line), 0)
    return DataError(f"{path}, line {number}: a NUL character: is this a text file? Leave it out")

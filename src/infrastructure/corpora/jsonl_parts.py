"""JSON-lines files as parts: one document an object."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.corpora.opening import listed, open_bytes, range_name, read_range, reading_text
from smallgpt.infrastructure.surrogates import well_formed

LONGEST_LINE = 2**28
"""Characters: a longer line is hardly one document, and it would be in memory several times."""


@dataclass(frozen=True)
class JsonLinesPart:
    """The texts in one field of a file's objects, or of a range of its bytes that holds whole lines."""

    path: Path
    field: str
    encoding: str | None
    size: int
    stamp: int
    start: int | None = None
    """As in TextPart."""
    skips_null: bool = False

    @property
    def name(self) -> str:
        """See Part."""
        return range_name(self.path, self.start)

    def documents(self) -> Iterator[str]:
        """See Part."""
        with reading_text(self.path, self.encoding, self.start) as encoding:
            for number, line in enumerate(self._lines(encoding), start=1):
                if line and not line.isspace():
                    text = self._text(line, number)
                    if text and not text.isspace():
                        yield well_formed(text)

    def _lines(self, encoding: str) -> Iterator[str]:
        if self.start is not None:
            yield from read_range(self.path, self.start, self.size, encoding).split("\n")
            return
        with io.TextIOWrapper(open_bytes(self.path), encoding) as lines:
            number = 0
            while line := lines.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE and not line.endswith("\n"):
                    raise line_too_long(self._where(number))
                yield line

    def _text(self, line: str, number: int) -> str:
        """The text of one line."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self._where(number)}: not JSON ({error}): {line.strip()[:60]!r}") from error
        if not isinstance(row, dict):
            raise DataError(f"{self._where(number)}: not a JSON object: {line.strip()[:60]!r}")
        if self.field not in row:
            known = listed(list(row))
            raise DataError(f"{self._where(number)}: no field {self.field!r}, only {known}; choose one with --field")
        text = row[self.field]
        if text is None and self.skips_null:
            return ""
        if not isinstance(text, str):
            raise not_text(text, self.field, self._where(number))
        return text

    def _where(self, number: int) -> str:
        """Line `number` of this part, by its number in the file."""
        before, left = 0, self.start or 0
        with self.path.open("rb") as file:
            while left and (block := file.read(min(left, 2**20))):
                before += block.count(b"\n")
                left -= len(block)
        return f"{self.path}, line {before + number}"


def line_too_long(where: str) -> DataError:
    """A line that would be in memory several times."""
    return DataError(f"{where}: a line of more than {LONGEST_LINE:,} characters; cut it into several objects")


def not_text(value: Any, field: str, where: str) -> DataError:
    """A value that should have been a text."""
    return DataError(f"{where}: {field!r} is {json.dumps(value, default=str)[:60]}, not text; remove or mend it")

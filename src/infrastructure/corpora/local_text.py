"""Documents from local files: .txt, .jsonl and .parquet, each also as .gz or .zst; folders are searched for them."""

import codecs
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.tokenizers import well_formed

KINDS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".zst")
DEFAULT_SEPARATOR = "<|endoftext|>"
_BYTE_ORDER_MARKS = [  # UTF-32's little-endian mark begins with UTF-16's, so it comes first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]


@dataclass(frozen=True)
class LocalText:
    """The documents of some files, in order, read anew by every iteration. White-space documents are left out.

    separator: a line of a .txt file that is just this ends a document ("" stands for a blank line).
    field: the field of a .jsonl object, or the column of a .parquet table, that holds the text.
    encoding: of .txt and .jsonl; when None, what the byte-order mark says, else UTF-8.
    """

    files: tuple[Path, ...]
    separator: str = DEFAULT_SEPARATOR
    field: str = "text"
    encoding: str | None = None

    def __iter__(self) -> Iterator[str]:
        for path in self.files:
            for text in self._documents(path):
                if text.strip():
                    yield well_formed(text)

    def _documents(self, path: Path) -> Iterator[str]:
        """The documents of one file. Raises DataError that names the file and, where it can, the line."""
        readers = {".txt": self._from_text, ".jsonl": self._from_jsonl, ".parquet": self._from_parquet}
        try:
            yield from readers[_kind(path)](path)
        except (OSError, EOFError, zlib.error) as error:
            number = error.errno if isinstance(error, OSError) else None
            if number is not None:  # the system's errors have a number, the decompressors' do not
                raise DataError(f"{path}: cannot be read ({os.strerror(number)})") from error
            raise DataError(f"{path}: damaged or not {path.suffix} data ({error}); make or fetch it again") from error

    def _from_text(self, path: Path) -> Iterator[str]:
        lines: list[str] = []
        for _, line in self._lines(path):
            if line.strip() == self.separator:
                yield "".join(lines).strip("\n")
                lines = []
            else:
                lines.append(line)
        yield "".join(lines).strip("\n")

    def _from_jsonl(self, path: Path) -> Iterator[str]:
        for number, line in self._lines(path):
            if line.strip():
                yield _field_of(line, self.field, f"{path}, line {number}")

    def _from_parquet(self, path: Path) -> Iterator[str]:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        with _open(path) as stream:
            source = pyarrow.BufferReader(stream.read()) if path.suffix.lower() in COMPRESSIONS else path
        try:
            with ParquetFile(source) as table:
                names = table.schema_arrow.names
                if self.field not in names:
                    raise DataError(f"{path}: no column {self.field!r}, only {_listed(names)}; choose one with --field")
                row = 0
                for batch in table.iter_batches(batch_size=1000, columns=[self.field]):
                    for text in batch.column(0).to_pylist():
                        row += 1
                        yield _text_or_error(text, self.field, f"{path}, row {row}")
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a sound Parquet file ({error})") from error

    def _lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """Numbered lines, ends normalised to "\\n", byte-order mark gone."""
        encoding = self._encoding_of(path)
        with io.TextIOWrapper(_open(path), encoding) as lines:
            try:
                for number, line in enumerate(lines, start=1):
                    if "\0" in line:
                        raise DataError(f"{path}, line {number}: a NUL character: is this a text file? Leave it out")
                    yield number, line
            except UnicodeDecodeError as error:
                offset, value = _first_bad_byte(path, encoding)
                remedy = "if it is Latin-1, say --encoding latin-1"
                raise DataError(f"{path}: byte 0x{value:02X} at offset {offset} is not {encoding}; {remedy}") from error

    def _encoding_of(self, path: Path) -> str:
        """The codec to read a file with: the mark's, the one asked for, or UTF-8. Raises DataError for binary files."""
        with _open(path) as stream:
            head = stream.read(65536)
        for mark, encoding in _BYTE_ORDER_MARKS:
            if head.startswith(mark):
                return encoding
        if self.encoding:
            return self.encoding
        if b"\0" in head:
            odd, even = head[1::2].count(0), head[0::2].count(0)
            if max(odd, even) > len(head) / 5 and min(odd, even) < len(head) / 50:
                guess = "utf-16-le" if odd > even else "utf-16-be"
                raise DataError(f"{path}: looks like UTF-16 without a byte-order mark; say --encoding {guess}")
            raise DataError(
                f"{path}: a NUL byte at offset {head.index(0)}: a binary file, not text; leave it out or convert it"
            )
        return "utf-8"


def read_documents(
    paths: Sequence[Path], *, separator: str = DEFAULT_SEPARATOR, field: str = "text", encoding: str | None = None
) -> LocalText:
    """The documents of files and of folders, which are searched in order of name.

    Raises DataError for a path that is missing or of an unknown kind, and a folder without any file of a known kind,
    ConfigError for an unknown encoding.
    """
    try:
        "".encode(encoding or "utf-8")
    except LookupError as error:
        raise ConfigError(f"encoding {encoding!r} is unknown; for example utf-8, latin-1, utf-16-le") from error
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = [each for each in sorted(path.rglob("*")) if each.is_file() and _kind(each) in KINDS]
            if not inside:
                raise DataError(f"{path}: no {_listed(KINDS)} files (or these as .gz or .zst) in this folder")
            found.update(dict.fromkeys(inside))
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder")
        elif _kind(path) not in KINDS:
            raise DataError(f"{path}: not one of {_listed(KINDS)} (or these as .gz or .zst); rename it if it is text")
        else:
            found[path] = None
    return LocalText(tuple(found), separator, field, encoding)


def _kind(path: Path) -> str:
    """The suffix that says what is inside, compression put aside."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def _open(path: Path) -> BinaryIO:
    """The file's bytes, decompressed; a compressed file that was cut short is an error, not an early end."""
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix.lower() == ".zst":
        import pyarrow

        return cast(BinaryIO, pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _first_bad_byte(path: Path, encoding: str) -> tuple[int, int]:
    """Offset and value of the first byte of a file that its encoding does not allow; one must be there."""
    decoder, before = codecs.getincrementaldecoder(encoding)(), 0
    with _open(path) as stream:
        while True:
            part = stream.read(2**20)
            before += len(part)
            try:
                decoder.decode(part, final=not part)
            except UnicodeDecodeError as error:
                return before - len(error.object) + error.start, error.object[error.start]


def _field_of(line: str, field: str, where: str) -> str:
    """The text of one JSON line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}): {line.strip()[:60]!r}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: not a JSON object: {line.strip()[:60]!r}")
    if field not in row:
        raise DataError(f"{where}: no field {field!r}, only {_listed(list(row))}; choose one with --field")
    return _text_or_error(row[field], field, where)


def _text_or_error(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {field!r} is {json.dumps(value, default=str)[:60]}, not text; remove or mend it")
    return value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"

"""Which local files there are, and how they are cut into parts."""

import codecs
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.corpora.jsonl_parts import LONGEST_LINE, JsonLinesPart, line_too_long
from smallgpt.infrastructure.corpora.opening import KINDS, encoding_of, in_words, is_compressed, kind, listed
from smallgpt.infrastructure.corpora.parquet_parts import ParquetPart, column_of, opened
from smallgpt.infrastructure.corpora.parts import Part
from smallgpt.infrastructure.corpora.text_parts import TextPart

DEFAULT_SEPARATOR = "<|endoftext|>"
PART_BYTES = 2**23
"""What a part has, about: enough to keep a process busy for half a second, little enough to be shared out evenly."""
LINE = re.compile(rb"\n")
# A byte of these that looks like "\n" is one, wherever reading begins.
_CUT_ANYWHERE = {"utf-8", "utf-8-sig", "ascii", "iso8859-1", "iso8859-15", "cp1252", "cp1250", "cp1251", "koi8-r"}


@dataclass(frozen=True)
class ReadOptions:
    """How documents are found in files.

    separator: a line of a .txt file that is just this ends a document ("" stands for a blank line).
    field: the field of a .jsonl object, or the column of a .parquet table, that holds the text.
    encoding: of .txt and .jsonl; when None, what the byte-order mark says, else UTF-8.
    skips_null: whether an object or row without a text (null) is left out; otherwise it is an error.
    """

    separator: str = DEFAULT_SEPARATOR
    field: str = "text"
    encoding: str | None = None
    skips_null: bool = False


DEFAULTS = ReadOptions()


@dataclass(frozen=True)
class SmallFiles:
    """Whole files taken as one part. There may be a million of them, so that they are kept as names alone."""

    paths: tuple[str, ...] = field(repr=False)
    options: ReadOptions
    size: int
    """Of all files."""
    digest: str
    """Over names, sizes and times of change: other files make another part."""

    @property
    def name(self) -> str:
        """See Part."""
        return f"{self.paths[0]} and {len(self.paths) - 1:,} more"

    def documents(self) -> Iterator[str]:
        """See Part."""
        for path in self.paths:
            for part in _parts(Path(path), self.options):
                yield from part.documents()


def plan_files(paths: Sequence[Path], options: ReadOptions = DEFAULTS) -> tuple[Part, ...]:
    """The parts of files and of folders, which are searched in order of name; large files are cut, small ones joined.

    Raises DataError for a path that is missing or of an unknown kind, and a folder without any file of a known kind,
    ConfigError for an encoding that is unknown, or has no way to write the separator.
    """
    _check(options.separator, options.encoding or "utf-8")
    return tuple(_joined(_files(paths), options))


def _check(separator: str, encoding: str) -> None:
    try:
        "".encode(encoding)  # not only looked up: hex and rot13 are codecs too, but not of text
    except (LookupError, UnicodeError) as error:
        raise ConfigError(f"encoding {encoding!r} is unknown; for example utf-8, latin-1, utf-16-le") from error
    try:
        separator.encode(encoding)
    except UnicodeError as error:
        raise ConfigError(
            f"separator {separator!r} cannot be written in {encoding}, so no line can be it; give another --separator "
            "or --encoding"
        ) from error


def _files(paths: Sequence[Path]) -> dict[str, None]:
    found: dict[str, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in _walk(path) if kind(Path(each)) in KINDS)
            if not inside:
                raise DataError(f"{path}: no {listed(KINDS)} files (or these as .gz or .zst) in this folder")
            found.update(dict.fromkeys(inside))
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder")
        elif kind(path) not in KINDS:
            raise DataError(f"{path}: not one of {listed(KINDS)} (or these as .gz or .zst); rename it if it is text")
        else:
            found[str(path)] = None
    return found


def _walk(folder: Path) -> Iterator[str]:
    """The files below a folder. Links are followed, but no folder is entered twice: a link may lead back up."""
    entered = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (path for path in (os.path.join(root, name) for name in files) if os.path.isfile(path))


def _raise(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _parts(path: Path, options: ReadOptions) -> Iterator[Part]:
    with in_words(path):
        status = path.stat()
        size, stamp = status.st_size, status.st_mtime_ns
        match kind(path):
            case ".parquet":
                yield from _of_parquet(path, options, size, stamp)
            case ".jsonl":
                for start, length in _ranges(path, size, options, LINE):
                    yield JsonLinesPart(
                        path, options.field, _settled(path, start, options), length, stamp, start, options.skips_null
                    )
            case _:
                for start, length in _ranges(path, size, options, _border(options)):
                    encoding = _settled(path, start, options)
                    yield TextPart(path, options.separator, encoding, length, stamp, start)


def _settled(path: Path, start: int | None, options: ReadOptions) -> str | None:
    """The encoding of a range, which has no byte-order mark of its own; of a whole file it is found when it is read."""
    return options.encoding if start is None else encoding_of(path, options.encoding)


def _of_parquet(path: Path, options: ReadOptions, size: int, stamp: int) -> Iterator[Part]:
    column = options.field
    if size < PART_BYTES or is_compressed(path):
        yield ParquetPart(path, column, size, stamp, skips_null=options.skips_null)
        return
    with opened(path) as file:
        number, groups = column_of(file, path, column), file.metadata.num_row_groups
        metadata = [file.metadata.row_group(group) for group in range(groups)]
    taken: list[int] = []
    bytes_taken = uncompressed = row = first = 0
    for group, facts in enumerate(metadata):
        taken.append(group)
        bytes_taken += facts.column(number).total_compressed_size
        uncompressed += facts.column(number).total_uncompressed_size
        row += facts.num_rows
        if uncompressed >= PART_BYTES or group == groups - 1:
            yield ParquetPart(path, column, bytes_taken, stamp, tuple(taken), first, options.skips_null)
            taken, bytes_taken, uncompressed, first = [], 0, 0, row


def _ranges(path: Path, size: int, options: ReadOptions, border: re.Pattern[bytes]) -> Iterator[tuple[int | None, int]]:
    """(start, bytes) of each part of a file; (None, size) where it has to be read from its beginning to its end."""
    if size < 2 * PART_BYTES or is_compressed(path):
        yield None, size
        return
    if codecs.lookup(encoding_of(path, options.encoding)).name not in _CUT_ANYWHERE:
        yield None, size
        return
    start = 0
    with path.open("rb") as file:
        while size - start >= 2 * PART_BYTES:
            end = _next_border(file, start + PART_BYTES, border)
            yield start, end - start
            start = end
    if start < size:
        yield start, size - start


def _next_border(file: BinaryIO, at: int, border: re.Pattern[bytes]) -> int:
    """Where the first match after `at` ends. A document of PART_BYTES without one is cut; a line never is."""
    for length in (2**16, PART_BYTES):
        file.seek(at)
        block = file.read(length)
        found = border.search(block, 1)  # "^" at 0 would match in the middle of a line
        if found and found.end() < len(block):
            return at + found.end()
    if border is LINE:
        if len(file.readline(LONGEST_LINE)) == LONGEST_LINE:
            raise line_too_long(f"{file.name}, from byte {at:,} on")
        return file.tell()
    return at + _softest_cut(block)


def _softest_cut(block: bytes) -> int:
    """After a line, else after a word, else before a character."""
    for end in (b"\n", b" "):
        if (at := block.find(end) + 1) > 0:
            return at
    return next((at for at, byte in enumerate(block) if byte & 0b1100_0000 != 0b1000_0000), len(block))


def _border(options: ReadOptions) -> re.Pattern[bytes]:
    """What ends a document in the bytes of a .txt file."""
    encoding = options.encoding or "utf-8"
    mark = "".encode(encoding)  # utf-8-sig writes one before every text, and a file has it but once
    separator = options.separator.strip().encode(encoding).removeprefix(mark)
    before = rb"[ \t]*" if separator else b""  # not two repeats side by side: see text_parts._separating
    return re.compile(rb"^" + before + re.escape(separator) + rb"[ \t\r]*\n", re.MULTILINE)


def _joined(paths: Iterable[str], options: ReadOptions) -> Iterator[Part]:
    """The parts of files in order; small files are taken together with their neighbours until they have PART_BYTES."""
    waiting: list[tuple[str, int, int]] = []
    size = 0
    for path in paths:
        with in_words(Path(path)):
            status = os.stat(path)
        if size + status.st_size > PART_BYTES:
            yield from _together(waiting, size, options)
            waiting, size = [], 0
        waiting.append((path, status.st_size, status.st_mtime_ns))
        size += status.st_size
    yield from _together(waiting, size, options)


def _together(files: Sequence[tuple[str, int, int]], size: int, options: ReadOptions) -> Iterator[Part]:
    """One part of several files (path, bytes, time of change); of a single one, as many as it has."""
    if len(files) > 1:
        digest = sha256("\n".join(map(repr, files)).encode("utf-8", "surrogateescape")).hexdigest()
        yield SmallFiles(tuple(path for path, _, _ in files), options, size, digest)
    else:
        for path, _, _ in files:
            yield from _parts(Path(path), options)

"""Opening local files: what kind they are, compression undone within bounds, encodings, and errors in plain words."""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from smallgpt.domain.errors import DataError

KINDS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".zst")
EXPANSION = 300
"""A compressed file may grow to that many times its size: text grows 3 to 30 times."""
EXPANSION_FLOOR = 2**28
"""Bytes that every compressed file may grow to."""
_BYTE_ORDER_MARKS = [  # UTF-32's little-endian mark begins with UTF-16's, so it comes first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]


def kind(path: Path) -> str:
    """The suffix that says what is inside, compression put aside."""
    return (path.with_suffix("") if is_compressed(path) else path).suffix.lower()


def is_compressed(path: Path) -> bool:
    """Whether it has to be decompressed to be read."""
    return path.suffix.lower() in COMPRESSIONS


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, decompressed; a compressed file that was cut short is an error, not an early end.

    Raises DataError where it expands beyond EXPANSION, so that a small file cannot fill the disk.
    """
    if not is_compressed(path):
        return path.open("rb")
    if path.suffix.lower() == ".gz":
        stream = cast(BinaryIO, gzip.GzipFile(path))
    else:
        import pyarrow

        stream = cast(BinaryIO, pyarrow.input_stream(str(path), compression="zstd"))
    return io.BufferedReader(_Bounded(stream, path), 2**20)


class _Bounded(io.RawIOBase):
    """A decompressing stream that ends in an error when too much comes out of it."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.stream, self.path = stream, path
        self.left = max(EXPANSION_FLOOR, EXPANSION * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]  # typeshed names its own buffer type
        content = self.stream.read(len(buffer))
        self.left -= len(content)
        if self.left < 0:
            raise DataError(
                f"{self.path}: expands to more than {EXPANSION} times its size, as an archive bomb does; "
                "decompress it yourself if it is right"
            )
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.stream.close()
        super().close()


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turns what the system and the decompressors say of a file into a DataError that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is not None:  # the system's errors have a number, the decompressors' do not
            raise DataError(f"{path}: cannot be read ({os.strerror(number)})") from error
        raise DataError(f"{path}: damaged or not {path.suffix} data ({error}); make or fetch it again") from error


@contextmanager
def reading_text(path: Path, encoding: str | None, start: int | None) -> Iterator[str]:
    """The codec of a text file, or of a range of it that begins at start, whose codec is settled; errors in words."""
    with in_words(path):
        settled = encoding if start is not None else None
        codec = settled or encoding_of(path, encoding)
        try:
            yield codec
        except UnicodeDecodeError as error:
            raise not_in_encoding(path, codec) from error


def read_range(path: Path, start: int, size: int, encoding: str) -> str:
    """The text of a range of bytes; only the first one of a file has its mark."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size).decode("utf-8" if start and encoding == "utf-8-sig" else encoding)


def range_name(path: Path, start: int | None) -> str:
    """A file, or a range of it, for messages."""
    return str(path) if start is None else f"{path} from byte {start:,}"


def encoding_of(path: Path, asked: str | None) -> str:
    """The codec to read a text file with: the mark's, the one asked for, or UTF-8. Raises DataError for binary files."""
    with open_bytes(path) as stream:
        head = stream.read(65536)
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    if asked:
        return asked
    if b"\0" in head:
        odd, even = head[1::2].count(0), head[0::2].count(0)
        if max(odd, even) > len(head) / 5 and min(odd, even) < len(head) / 50:
            guess = "utf-16-le" if odd > even else "utf-16-be"
            raise DataError(f"{path}: looks like UTF-16 without a byte-order mark; say --encoding {guess}")
        raise DataError(
            f"{path}: a NUL byte at offset {head.index(0)}: a binary file, not text; leave it out or convert it"
        )
    return "utf-8"


def not_in_encoding(path: Path, encoding: str) -> DataError:
    """Which byte of a file its encoding does not allow; there must be one."""
    decoder, before = codecs.getincrementaldecoder(encoding)(), 0
    with open_bytes(path) as stream:
        while part := stream.read(2**20):
            before += len(part)
            try:
                decoder.decode(part)
            except UnicodeDecodeError as error:
                return _bad_byte(path, encoding, before, error)
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            return _bad_byte(path, encoding, before, error)
    return DataError(f"{path}: changed while it was read; run the command again")


def _bad_byte(path: Path, encoding: str, before: int, error: UnicodeDecodeError) -> DataError:
    offset, value = before - len(error.object) + error.start, error.object[error.start]
    remedy = "if it is Latin-1, say --encoding latin-1, or convert this file where others are UTF-8"
    return DataError(f"{path}: byte 0x{value:02X} at offset {offset} is not {encoding}; {remedy}")


def listed(names: Sequence[str]) -> str:
    """Names for a message."""
    return ", ".join(names) or "nothing"

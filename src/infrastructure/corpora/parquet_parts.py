"""Parquet files as parts: one document a row, some row groups a part."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.corpora.jsonl_parts import not_text
from smallgpt.infrastructure.corpora.opening import in_words, is_compressed, listed, open_bytes

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

FIRST_ROWS, ROWS_AT_ONCE = 16, 1000
BYTES_AT_ONCE = 2**23


@dataclass(frozen=True)
class ParquetPart:
    """The texts in one column of some row groups (None: all) of a file; `first_row` is the first one's number."""

    path: Path
    column: str
    size: int
    """Bytes of the file for all of it, of the column in these groups otherwise."""
    stamp: int
    groups: tuple[int, ...] | None = None
    first_row: int = 0
    skips_null: bool = False

    @property
    def name(self) -> str:
        """See Part."""
        return str(self.path) if self.groups is None else f"{self.path} from row {self.first_row:,}"

    def documents(self) -> Iterator[str]:
        """See Part."""
        with opened(self.path) as file:
            column_of(file, self.path, self.column)
            row = self.first_row
            for batch in file.iter_batches(self._rows_at_once(file), row_groups=self.groups, columns=[self.column]):
                for text in self._texts(batch.column(0), row):
                    if text and not text.isspace():
                        yield text
                row += batch.num_rows

    def _rows_at_once(self, file: "ParquetFile") -> int:
        """Fewer rows where they are long, judged by the first ones as they are in memory: on disk they may be compressed."""
        first = next(file.iter_batches(FIRST_ROWS, row_groups=self.groups, columns=[self.column]), None)
        if first is None or not first.num_rows:
            return ROWS_AT_ONCE
        fitting: int = BYTES_AT_ONCE * first.num_rows // max(1, first.nbytes)
        return max(1, min(ROWS_AT_ONCE, fitting))

    def _texts(self, values: Any, row: int) -> list[str | None]:
        """The strings of an Arrow array whose first value is that row's."""
        try:
            texts: list[str | None] = values.to_pylist()
        except UnicodeDecodeError:
            for number, value in enumerate(values, start=row + 1):
                if (error := _damage(value)) is not None:
                    where = f"{self.path}, row {number}"
                    raise DataError(f"{where}: {self.column!r} is not UTF-8 ({error}); remove or mend it") from error
            raise
        for number, text in enumerate(texts, start=row + 1):
            if not isinstance(text, str) and not (text is None and self.skips_null):
                raise not_text(text, self.column, f"{self.path}, row {number}")
        return texts


@contextmanager
def opened(path: Path) -> "Iterator[ParquetFile]":
    """A file to read. Raises DataError that names it for whatever is wrong with it."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with in_words(path):
            if is_compressed(path):
                with open_bytes(path) as stream:
                    source: Any = pyarrow.BufferReader(stream.read())
            else:
                source = path
            with ParquetFile(source) as file:
                yield file
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a sound Parquet file ({str(error).splitlines()[0]})") from error


def column_of(file: "ParquetFile", path: Path, column: str) -> int:
    """The number of a text column among the schema's leaves. Raises DataError when there is none, or one of something else."""
    import pyarrow.types

    schema = file.schema_arrow
    if column not in schema.names:
        raise DataError(f"{path}: no column {column!r}, only {listed(schema.names)}; choose one with --field")
    kind = schema.field(column).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_null(kind)):
        texts = [field.name for field in schema if pyarrow.types.is_string(field.type)]
        raise DataError(
            f"{path}: column {column!r} holds {kind}, not text; text is in {listed(texts)}: choose with --field"
        )
    return [file.schema.column(leaf).path for leaf in range(len(file.schema))].index(column)


def _damage(value: Any) -> UnicodeDecodeError | None:
    try:
        value.as_py()
    except UnicodeDecodeError as error:
        return error
    return None

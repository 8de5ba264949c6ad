"""A Hugging Face dataset as a corpus: on the hub, in its cache, or a local folder in hub layout."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.corpora import fetching
from smallgpt.infrastructure.corpora.data_files import (
    ArchivesError,
    archived_splits,
    first_line,
    listed_split_files,
    plainly_named,
    quiet_datasets,
    split_files,
)
from smallgpt.infrastructure.corpora.fetching import HubFile, Listing, UnreachableError
from smallgpt.infrastructure.corpora.opening import KINDS, kind
from smallgpt.infrastructure.corpora.parts import Corpus, Documents, Part
from smallgpt.infrastructure.corpora.planning import ReadOptions, plan_files
from smallgpt.infrastructure.retrying import is_html

if TYPE_CHECKING:
    from smallgpt.infrastructure.progress import Progress

File = TypeVar("File")
Splits = dict[str, list[File]]
Parts = tuple[Part, ...]
TINYSTORIES = "roneneldan/TinyStories"
VALIDATION_NAMES = ("validation", "valid", "dev", "test")
_WITHOUT_IT = (
    "without it use `smallgpt prepare text FILES` or `smallgpt prepare demo`, fill the cache elsewhere and set "
    "HF_HUB_OFFLINE=1, or name a mirror in HF_ENDPOINT"
)


@dataclass(frozen=True)
class RemotePart:
    """A file on the hub that is fetched when it is read, and gone from the disk afterwards."""

    dataset: str
    commit: str
    file: HubFile
    column: str

    @property
    def name(self) -> str:
        """See Part."""
        return f"{self.dataset}, {self.file.path}"

    @property
    def size(self) -> int:
        """See Part."""
        return self.file.size

    def documents(self) -> Iterator[str]:
        """See Part."""
        listing = Listing(self.dataset, self.commit, (self.file,))
        with TemporaryDirectory(prefix="smallgpt-") as place:
            try:
                path = fetching.cached(listing, self.file) or fetching.fetch_to(Path(place), listing, self.file)
            except UnreachableError as error:
                raise DataError(_unreachable(self.dataset, error)) from error
            try:
                yield from Documents(plan_files([path], ReadOptions(field=self.column, skips_null=True)))
            except DataError as error:
                raise DataError(_in_terms_of_the_hub(error, path, self.name)) from error


@dataclass(frozen=True)
class RowsPart:
    """A split in a format that only `datasets` reads, streamed by it."""

    dataset: str
    """OWNER/NAME, or the path of a local folder."""
    commit: str | None
    config: str | None
    split: str
    column: str
    size: int

    @property
    def name(self) -> str:
        """See Part."""
        return f"{self.dataset}, {self.split}"

    def documents(self) -> Iterator[str]:
        """See Part."""
        import datasets

        from smallgpt.infrastructure.surrogates import well_formed

        try:
            with quiet_datasets():
                rows = datasets.load_dataset(
                    self.dataset, self.config, revision=self.commit, split=self.split, streaming=True
                )
                for number, row in enumerate(rows, start=1):
                    text = _text_of(row, self.column, f"{self.name}, row {number}")
                    if text.strip():
                        yield well_formed(text)
        except (DataError, GeneratorExit):
            raise
        except Exception as error:  # the libraries below raise their own kinds: HTTP, Arrow, configuration, scripts
            raise DataError(
                f"{self.name}: the dataset cannot be read: {type(error).__name__}, {first_line(error)}"
            ) from error


def hub_corpus(
    name: str,
    *,
    column: str = "text",
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    progress: "Progress | None" = None,
) -> Corpus:
    """A dataset ("tinystories" for short) at a commit of the hub (of "main" when revision is None), or a local folder.

    Its files are fetched into the hub's cache first or, when streaming, each one only while its part is read.
    Validation is the first of VALIDATION_NAMES that it has. Raises DataError when it cannot be reached or found, has
    no such column, no split to train on, or files that are not what the hub says.
    """
    name = TINYSTORIES if name == "tinystories" else name
    if progress:
        progress(0, None, f"loading {name}")
    if Path(name).is_dir():
        return _of_folder(Path(name), column, config)
    if name.startswith((".", "/", "~")):
        raise DataError(f"{name}: no such dataset on the hub, and no folder; on the hub it would be OWNER/NAME")
    with quiet_datasets():
        listing, reached = _listing(name, revision, progress)
        cards = [file for file in listing.files if file.path in fetching.CARDS]
        try:
            paths = fetching.fetch_files(listing, cards)
            known = [file.path for file in listing.files if file.path not in fetching.CARDS]
            try:
                splits = _chosen(listed_split_files(known, paths, config, name), name)
            except ArchivesError:
                archives = [path for path in known if path.lower().endswith(".zip")]
                of_archives = dict.fromkeys(archived_splits(name, listing.commit, config), archives)
                splits = _chosen(of_archives, name)
            parts = _remote_parts(listing, splits, column, config)
            if not reached:
                _check_cache(listing, parts)
            if not streaming:
                parts = _fetched(listing, parts, column, progress)
        except UnreachableError as error:
            raise DataError(_unreachable(name, error)) from error
    return _corpus(name, parts, listing.commit)


def _listing(name: str, revision: str | None, progress: "Progress | None") -> tuple[Listing, bool]:
    """What the hub lists and True, or what it listed when it could be reached and False."""
    try:
        if not fetching.hub_answers():
            raise UnreachableError("the hub cannot be reached")
        return fetching.fetch_listing(name, revision, progress), True
    except UnreachableError as error:
        listing = fetching.cached_listing(name, revision)
        if listing is None:
            raise DataError(_unreachable(name, error)) from error
        if progress:
            progress(0, None, f"the hub cannot be reached, using {name} at {listing.commit[:12]} in the cache")
        return listing, False


def _check_cache(listing: Listing, splits: dict[str, Parts]) -> None:
    """Refuse, before anything is tried, what is not all in the cache."""
    parts = [part for each in splits.values() for part in each]
    there = [part for part in parts if isinstance(part, RemotePart) and fetching.cached(listing, part.file)]
    if len(there) < len(parts):
        raise UnreachableError(
            f"the hub cannot be reached, and only {len(there)} of {len(parts)} files are in the cache"
        )


def _of_folder(folder: Path, column: str, config: str | None) -> Corpus:
    name, parts = str(folder), dict[str, Parts]()
    try:
        found = (not config and plainly_named(folder.resolve())) or split_files(folder.resolve(), config, name)
    except ArchivesError as error:
        raise DataError(f"{name}: a .zip file in it is damaged; make or fetch it again") from error
    for split, files in _chosen(found, name).items():
        if all(map(_is_direct, files)):
            parts[split] = _planned(files, column, name)
        else:
            size = sum(file.stat().st_size for file in files if file.is_file())
            parts[split] = (RowsPart(str(folder.resolve()), None, config, split, column, size),)
    return _corpus(folder.resolve().name, parts, None)


def _remote_parts(listing: Listing, splits: Splits[str], column: str, config: str | None) -> dict[str, Parts]:
    """Each split's files, to be fetched when they are read."""
    known = {file.path: file for file in listing.files}
    parts = dict[str, Parts]()
    for split, paths in splits.items():
        files = [known[path] for path in paths]
        if all(_is_direct(Path(path)) for path in paths):
            parts[split] = tuple(RemotePart(listing.name, listing.commit, file, column) for file in files)
        else:
            size = sum(file.size for file in files)
            parts[split] = (RowsPart(listing.name, listing.commit, config, split, column, size),)
    return parts


def _fetched(listing: Listing, splits: dict[str, Parts], column: str, progress: "Progress | None") -> dict[str, Parts]:
    """The same parts, their files fetched now."""
    files = {part.file: split for split, parts in splits.items() for part in parts if isinstance(part, RemotePart)}
    paths = fetching.fetch_files(listing, list(files), progress)
    fetched = dict(splits)
    for split in dict.fromkeys(files.values()):
        here = [path for path, owner in zip(paths, files.values(), strict=True) if owner == split]
        fetched[split] = _planned(here, column, listing.name)
    return fetched


def _planned(files: Sequence[Path], column: str, name: str) -> Parts:
    try:
        for file in files:
            if file.suffix.lower() == ".parquet":
                _check_column(file, column, name)
        parts = plan_files(files, ReadOptions(field=column, skips_null=True))
        next(iter(Documents(parts)), None)  # what is wrong with all of it shows in the first document
    except DataError as error:
        raise DataError(_in_terms_of_the_hub(error)) from error
    return parts


def _chosen(splits: Splits[File], name: str) -> Splits[File]:
    """The split to train on, and the one to validate on, if there is one."""
    if not splits:
        raise DataError(f"{name}: no data files; get them by hand and use `smallgpt prepare text FILES`")
    if "train" not in splits and len(splits) > 1:
        raise DataError(f"{name}: no split called train, only {', '.join(splits)}")
    train = "train" if "train" in splits else next(iter(splits))
    validation = [each for each in VALIDATION_NAMES if each in splits and each != train]
    return {split: splits[split] for split in [train, *validation[:1]]}


def _corpus(name: str, parts: dict[str, Parts], commit: str | None) -> Corpus:
    train, *others = parts.values()
    return Corpus(name, train, others[0] if others else None, commit)


def _is_direct(path: Path) -> bool:
    """Is it of a kind that is read without `datasets`?"""
    return kind(path) in KINDS


def _check_column(file: Path, column: str, name: str) -> None:
    """Is it there and text? Raises DataError."""
    import pyarrow
    from pyarrow.parquet import read_schema

    try:
        schema = read_schema(file)
    except (pyarrow.ArrowException, OSError) as error:
        with file.open("rb") as stream:
            what = "is a web page, not" if is_html(stream.read(64)) else "is not"
        raise DataError(
            f"{name}: {file.name} {what} a sound Parquet file ({first_line(error)}); tell its owner, choose another "
            "--revision, or use `smallgpt prepare text FILES` with the others"
        ) from error
    if column not in schema.names:
        raise DataError(f"{name}: no column {column!r}, only {', '.join(schema.names)}; choose one with --column")
    held = schema.field(column).type
    if not (pyarrow.types.is_string(held) or pyarrow.types.is_large_string(held)):
        raise DataError(f"{name}: column {column!r} holds {held}, not text; choose another with --column")


def _text_of(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise DataError(f"{where}: no column {column!r}, only {', '.join(row)}; choose one with --column")
    text = row[column]
    if text is not None and not isinstance(text, str):
        raise DataError(
            f"{where}: column {column!r} holds {type(text).__name__}, not text; choose another with --column"
        )
    return text or ""


def _in_terms_of_the_hub(error: DataError, path: Path | None = None, name: str = "") -> str:
    message = str(error).replace("--field", "--column")
    return message.replace(str(path), name) if path else message


def _unreachable(name: str, error: UnreachableError) -> str:
    from huggingface_hub import constants

    return f"{name}: {error} ({constants.ENDPOINT}); {_WITHOUT_IT}"

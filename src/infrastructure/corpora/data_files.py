"""Which files of a dataset belong to which split, as `datasets` itself resolves it: by the card, else by their names."""

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

from smallgpt.domain.errors import DataError

_PLAIN_NAME = re.compile(r"data/(\w+)-\d{5}-of-\d{5}\.(?:parquet|jsonl|txt)(?:\.gz|\.zst)?")


class ArchivesError(Exception):
    """Which split is where cannot be told by names: the data files are .zip files."""


def split_files(folder: Path, config: str | None, name: str) -> dict[str, list[Path]]:
    """The data files in a folder in hub layout by split; what they hold is not looked at.

    Raises DataError when there are none, and for a config that is not there.
    """
    import datasets
    from datasets.exceptions import DataFilesNotFoundError

    with quiet_datasets(), TemporaryDirectory() as cache:
        try:
            found = datasets.load_dataset_builder(str(folder), config, cache_dir=cache).config.data_files
        except (FileNotFoundError, DataFilesNotFoundError) as error:
            raise DataError(
                f"{name}: no data files that `datasets` knows, such as .parquet, .jsonl or .txt; "
                "get them by hand and use `smallgpt prepare text FILES`"
            ) from error
        except BadZipFile as error:
            raise ArchivesError from error
        except Exception as error:  # the card is anyone's text: YAML, patterns and configurations of every kind
            if "onfig" in str(error):  # the second line lists them
                words = " ".join(str(error).split("\n")[:2])[:300]
                raise DataError(f"{name}: {words} Choose one with --config") from error
            raise DataError(f"{name}: the dataset cannot be loaded: {first_line(error)}") from error
    return {str(split): [Path(file) for file in files] for split, files in (found or {}).items()}


def plainly_named(folder: Path) -> dict[str, list[Path]]:
    """The same where names alone tell, without importing `datasets`, which takes a second. Empty where there is more to it.

    data/SPLIT-00000-of-00001.* is its first pattern, and decides alone where there is neither a card nor another file.
    """
    splits = dict[str, list[Path]]()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        named = _PLAIN_NAME.fullmatch(path.relative_to(folder).as_posix())
        if named is None:
            return {}
        splits.setdefault(named[1], []).append(path)
    return splits


def archived_splits(name: str, commit: str, config: str | None) -> list[str]:
    """The splits of a dataset on the hub in .zip files, by a look into one of them."""
    import datasets

    with quiet_datasets(), TemporaryDirectory() as cache:
        try:
            found = datasets.load_dataset_builder(name, config, revision=commit, cache_dir=cache).config.data_files
        except Exception as error:
            raise DataError(
                f"{name}: its archives cannot be read ({first_line(error)}); unpack them and use `smallgpt prepare text FILES`"
            ) from error
    return [str(split) for split in found]


def listed_split_files(
    paths: Sequence[str], cards: Sequence[Path], config: str | None, name: str
) -> dict[str, list[str]]:
    """The same for paths that are only known by name, with their cards, by empty files in their places."""
    with TemporaryDirectory() as place:
        folder = Path(place).resolve() / Path(name).name
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
        for card in cards:
            shutil.copyfile(card, folder / card.name)
        splits = split_files(folder, config, name)
        for file in (file for files in splits.values() for file in files if not file.is_relative_to(folder)):
            raise DataError(f"{name}: its card names a file outside of it ({file}); use `smallgpt prepare text FILES`")
        return {split: [file.relative_to(folder).as_posix() for file in files] for split, files in splits.items()}


def first_line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars, no talk and no count of downloads from the libraries; as it was afterwards."""
    import datasets

    bars, counts = datasets.is_progress_bar_enabled(), datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    loggers = [logging.getLogger(each) for each in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # which would be told to a host outside of the mirror
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # what goes wrong is raised too
    try:
        yield
    finally:
        if bars:
            datasets.enable_progress_bars()
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

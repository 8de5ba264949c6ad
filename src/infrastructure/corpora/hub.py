"""Documents from a Hugging Face dataset: on the hub, in its cache, or a local folder in hub layout."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.corpora.splitting import split_documents

TINYSTORIES = "roneneldan/TinyStories"
VALIDATION_NAMES = ("validation", "valid", "dev", "test")
_WITHOUT_NETWORK = (
    "without a network use `smallgpt prepare demo` or `smallgpt prepare text FILES`, fill the cache elsewhere and "
    "set HF_HUB_OFFLINE=1, or name a mirror in HF_ENDPOINT"
)


@dataclass(frozen=True)
class HubText:
    """The non-empty texts of one column of a dataset's split, read anew by every iteration."""

    rows: Any
    """A datasets.Dataset."""
    column: str

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        for batch in self.rows.select_columns([self.column]).iter(batch_size=1000):
            yield from (text for text in batch[self.column] if text and text.strip())


def hub_documents(
    name: str, *, column: str = "text", config: str | None = None, validation_share: float = 0.05
) -> tuple[Iterable[str], Iterable[str]]:
    """Training and validation documents of a dataset; without a split to validate on, `validation_share` of training.

    Raises DataError when it cannot be reached or found, has no such column, or no split to train on.
    """
    splits = _load(name, config)
    if "train" not in splits and len(splits) > 1:
        raise DataError(f"{name}: no split called train, only {', '.join(splits)}")
    train = splits.get("train", next(iter(splits.values())))
    if column not in train.column_names:
        known = ", ".join(train.column_names)
        raise DataError(f"{name}: no column {column!r}, only {known}; choose one with --column")
    kind = getattr(train.features[column], "dtype", "nested")
    if kind not in ("string", "large_string"):
        raise DataError(f"{name}: column {column!r} holds {kind}, not text; choose another with --column")
    validation = next((splits[each] for each in VALIDATION_NAMES if each in splits), None)
    if validation is None:
        return split_documents(HubText(train, column), validation_share, name)
    return HubText(train, column), HubText(validation, column)


def _load(name: str, config: str | None) -> dict[str, Any]:
    """The dataset's splits by name."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants

    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise DataError(f"{name}: no such dataset on the hub, and no folder; on the hub it would be OWNER/NAME")
    try:
        with _quiet(), _offline_unless(Path(name).is_dir() or _hub_answers()):
            return dict(datasets.load_dataset(name, config))
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise DataError(
            f"{name}: no such dataset on the hub, and no folder with data files ({_first(error)})"
        ) from error
    except OSError as error:  # no network, offline mode, a cache that cannot be written: all are OSErrors
        if isinstance(error, ConnectionError):
            raise DataError(f"{name}: the hub cannot be reached ({constants.ENDPOINT}); {_WITHOUT_NETWORK}") from error
        raise DataError(f"{name}: {_first(error)}; the datasets cache can be moved with HF_HOME") from error
    except Exception as error:  # the libraries below raise their own kinds: HTTP, Arrow, configuration, scripts
        raise DataError(f"{name}: the dataset cannot be loaded: {type(error).__name__}, {_first(error)}") from error


def _hub_answers(seconds: float = 5.0) -> bool:
    """Does the hub say anything at all within some seconds?"""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception:  # of the HTTP library, which is not the same in every version
        return False
    return True


@contextmanager
def _offline_unless(reachable: bool) -> Iterator[None]:
    """Without a network the libraries take what is in the cache at once, instead of after half a minute of retries."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not reachable:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no talk of retries from the libraries while loading; as it was afterwards."""
    import datasets

    bars = datasets.is_progress_bar_enabled()
    loggers = [logging.getLogger(each) for each in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # what goes wrong is raised too
    try:
        yield
    finally:
        if bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

"""From a place that a user names, a path or a URL, to a folder of this machine: what is inside sees no others."""

from collections.abc import Iterable
from pathlib import Path

from smallgpt.infrastructure.progress import Progress


def at_hand(folders: Iterable[Path | str], progress: Progress | None = None) -> tuple[Path, ...]:
    """Data folders on this machine: those behind a URL as their copies in the cache. Raises DataError, ConfigError."""
    from smallgpt.infrastructure.copies import data_copy

    return tuple(folder if isinstance(folder, Path) else data_copy(folder, progress) for folder in folders)


def record_at_hand(run: Path | str) -> Path:
    """A run's settings and events on this machine: of a URL, a copy in the cache. Raises CheckpointError, ConfigError."""
    if isinstance(run, Path):
        return run
    from smallgpt.infrastructure.copies import record_copy

    return record_copy(run)


def model_at_hand(model: Path | str, progress: Progress | None = None) -> Path:
    """A model on this machine: what is behind a URL as its copy in the cache. Raises CheckpointError, ConfigError."""
    if isinstance(model, Path):
        return model
    from smallgpt.infrastructure.copies import model_copy

    return model_copy(model, progress)

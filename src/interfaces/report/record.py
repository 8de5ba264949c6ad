"""A run folder read for judging: its configuration, its events and, when still there, the manifest of its data."""

from pathlib import Path
from typing import Any

from smallgpt.application.findings import RunRecord
from smallgpt.domain.errors import CheckpointError, DataError
from smallgpt.infrastructure.manifest import read_manifest
from smallgpt.infrastructure.run_folder import RunFolder


def read_record(run: Path) -> RunRecord:
    """The record of a run folder, or of the run that a checkpoint folder belongs to. Raises CheckpointError."""
    folder = RunFolder(run_of(run))
    config = folder.config()
    try:
        events = folder.metrics()
    except UnicodeDecodeError:
        raise CheckpointError(f"{folder.metrics_file} cannot be read: it is not UTF-8 text.") from None
    events = [event for event in events if isinstance(event, dict) and {"event", "step"} <= event.keys()]
    started = [event["data"] for event in events if event["event"] == "start" and event.get("data")]
    data = started[-1] if started else config.data.path
    return RunRecord(config, events, _manifest(Path(data)) if data else None)


def run_of(path: Path) -> Path:
    """The run folder of a path that may be one of its checkpoints."""
    inside = path.absolute()
    return inside.parent.parent if inside.parent.name == "checkpoints" else path


def _manifest(data: Path) -> dict[str, Any] | None:
    """dataset.json, or None: the data may have been moved or deleted since the run, which is still worth judging."""
    try:
        return read_manifest(data).model_dump(mode="json")
    except DataError:
        return None

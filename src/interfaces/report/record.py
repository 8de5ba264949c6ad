"""A run folder read for judging: its configuration, its events and, when still there, the manifest of its data."""

from collections.abc import Sequence
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
    folders = [Path(started[-1])] if started and not config.data.mixture else config.data.folders
    here = [folder for folder in folders if isinstance(folder, Path)]  # the others are in a store
    return RunRecord(config, events, _manifest(here) if here and len(here) == len(folders) else None)


def run_of(path: Path) -> Path:
    """The run folder of a path that may be one of its checkpoints."""
    inside = path.absolute()
    return inside.parent.parent if inside.parent.name == "checkpoints" else path


def _manifest(folders: Sequence[Path]) -> dict[str, Any] | None:
    """dataset.json, or None: the data may have been moved or deleted since the run, which is still worth judging.

    Of several folders the first one's, with what all of them hold together.
    """
    try:
        manifests = [read_manifest(folder).model_dump(mode="json") for folder in folders]
    except DataError:
        return None
    for name, facts in manifests[0]["splits"].items():
        others = [manifest["splits"].get(name, facts) for manifest in manifests[1:]]
        for field, together in (("tokens", sum), ("documents", sum), ("text_bytes", sum), ("longest_document", max)):
            amounts = [each[field] for each in (facts, *others)]
            facts[field] = None if None in amounts else together(amounts)
    if len(manifests) > 1:
        manifests[0]["baselines"] = None
    return manifests[0]

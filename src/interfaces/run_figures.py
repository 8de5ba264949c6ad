"""What a run's record tells of a checkpoint, in words for a model card."""

from pathlib import Path

from smallgpt.domain.errors import DataError
from smallgpt.domain.places import name_of
from smallgpt.infrastructure.manifest import read_manifest
from smallgpt.infrastructure.run_folder import RunFolder


def run_figures(run: RunFolder, step: int | None) -> dict[str, str]:
    """Data, length and last validation of the run at this step; what its record does not have is left out."""
    events = [event for event in run.metrics() if event.get("step") == step]
    figures = {"data": ", ".join(_source(folder) for folder in run.config().data.folders)}
    trained = next((event for event in reversed(events) if event["event"] == "train"), None)
    if trained is not None:
        figures |= {"steps": f"{step:,}", "tokens trained on": f"{trained['tokens']:,}"}
    scored = next((event for event in reversed(events) if event["event"] == "validation"), None)
    if scored is not None:
        figures["nats per token"] = f"{scored['nats_per_token']:.4f} on {scored['tokens']:,} validation tokens"
        if scored.get("bits_per_byte") is not None:
            figures["bits per byte"] = f"{scored['bits_per_byte']:.4f}"
    return {name: words for name, words in figures.items() if words}


def _source(folder: Path | str) -> str:
    """What a data folder was made of; its own name where it is gone, or in a store."""
    if isinstance(folder, str):
        return name_of(folder)
    try:
        manifest = read_manifest(folder)
    except DataError:
        return folder.name
    return manifest.source if manifest.revision is None else f"{manifest.source} at {manifest.revision}"

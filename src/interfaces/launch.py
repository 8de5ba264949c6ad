"""A run of several processes: joined, agreed on the configuration, and found again after a restart."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.processes import ALONE, Processes
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.files import write_atomically
from smallgpt.infrastructure.launches import launched, local_device

LAUNCH = "launch"
"""The file of a run folder that names the launch which made it."""
OWN = {"training.device", "training.threads"}
"""Settings that may differ between processes: what each computes with."""


@contextmanager
def joined_processes(config: RunConfig) -> Iterator[Processes]:
    """The processes that a launcher such as torchrun started together, or this one alone.

    Raises ConfigError when they were given different settings, or more of them than a step has sequences.
    """
    found = launched()
    if found is None:
        yield ALONE
        return
    from smallgpt.infrastructure.distributed import Replicas, process_group

    settings = config.training
    if settings.batch_size < found[1]:
        raise ConfigError(
            f"training.batch_size ({settings.batch_size}) is less than the {found[1]} processes; each needs a sequence"
        )
    device = local_device(devices.choose_device(settings.device))
    with process_group(device, settings.process_timeout):
        processes = Replicas(device, settings.reduce)
        _check_same(processes.of_all(_flat(config)))
        yield processes


def _check_same(settings: Sequence[dict[str, Any]]) -> None:
    first = settings[0]
    for rank, theirs in enumerate(settings):
        differ = [f"{name} {first[name]} and {theirs[name]}" for name in first if first[name] != theirs[name]]
        if differ:
            raise ConfigError(
                f"processes 0 and {rank} have different settings: {'; '.join(differ)}.\n"
                "Start all of them with the same command."
            )


def _flat(config: RunConfig) -> dict[str, Any]:
    sections = config.model_dump(mode="json")
    values = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    return {name: value for name, value in values.items() if name not in OWN}


def run_of_this_launch(folders: Sequence[Path]) -> Path | None:
    """The one of these run folders that an earlier round of this launch made: torchrun restarts the same command."""
    launch = _launch_id()
    return next((folder for folder in folders if launch is not None and _read(folder / LAUNCH) == launch), None)


def remember_launch(run: Path) -> None:
    """Name this launch in the run folder, so that a restart of it goes on there."""
    launch = _launch_id()
    if launch is not None:
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(run / LAUNCH, launch)


def _launch_id() -> str | None:
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if launch in (None, "none") else launch


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None

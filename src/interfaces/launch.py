"""A launch of several processes: joined, agreed on the configuration, and its run found again after a restart."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.processes import ALONE, Processes
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.launches import launched, local_device
from smallgpt.infrastructure.run_folder import RunFolder

OWN = {"training.device", "training.threads"}
"""Settings that may differ between processes: what each computes with."""
GIVING_UP = 30.0  # seconds: for the rest of a step, or of a checkpoint


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
    """The one of these run folders that an earlier round of this launch made: torchrun restarts the same command.

    Raises ConfigError for a launch that will be restarted and has no name to be known by.
    """
    launch = launch_name()
    if launch is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise ConfigError(
            "torchrun is to restart this launch, which has no name, so that its run could not be found again.\n"
            "Name it with --rdzv-id NAME, on every host the same."
        )
    return next((folder for folder in folders if launch is not None and RunFolder(folder).launch() == launch), None)


def launch_name() -> str | None:
    """What torchrun calls this launch (--rdzv-id); None for a launch without a name, and for no launch."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if launch in (None, "none") else launch


def patience(config: RunConfig) -> float:
    """Seconds within which a process that was cut off gives up waiting for the others, and then its run."""
    return config.training.process_timeout + GIVING_UP

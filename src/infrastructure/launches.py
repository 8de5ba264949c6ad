"""What a launcher such as torchrun tells a process, by the environment; distributed.py does the rest, and is slow to load."""

import os

import torch

from smallgpt.domain.errors import ConfigError


def launched() -> tuple[int, int] | None:
    """(this process's rank, how many there are) where a launcher such as torchrun started it; else None."""
    rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    return (int(rank), int(count)) if rank is not None and count is not None else None


def local_count() -> int:
    """Processes of this training on this machine; 1 where no launcher says otherwise."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine. Raises ConfigError for one that was named for all of them."""
    if device.type != "cuda" or launched() is None:
        return device
    if str(device) != "cuda":
        raise ConfigError(
            f"training.device is {device}, which every process would take; use cuda or auto with torchrun"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

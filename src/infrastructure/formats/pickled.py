"""Files of torch.save, of which nothing but tensors and plain values is ever loaded."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallgpt.domain.errors import CheckpointError

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


def load_plain(path: Path) -> Any:
    """The content of a file of torch.save: tensors and plain containers. Raises CheckpointError for anything else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A state_dict by name, without the prefixes of wrappers. Raises CheckpointError."""
    return named_tensors(load_plain(path), path)


def named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The same of what was loaded already."""
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} is no state_dict: it holds more than tensors by name")
    return {_without_prefixes(str(name)): tensor for name, tensor in content.items()}


def _without_prefixes(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.removeprefix(next(prefix for prefix in PREFIXES if name.startswith(prefix)))
    return name

"""Files of torch.save, of which nothing but tensors and plain values is ever loaded."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallgpt.domain.errors import CheckpointError, is_out_of_memory

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


def load_plain(path: Path) -> Any:
    """The content of a file of torch.save: tensors and plain containers. Raises CheckpointError for anything else."""
    try:
        _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle protocol that is not torch's usual one
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (
        Exception
    ) as error:  # a damaged file makes torch and zipfile raise anything, a struct.error or an IndexError too
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A state_dict by name, without the prefixes of wrappers. Raises CheckpointError."""
    return named_tensors(load_plain(path), path)


def named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The same of what was loaded already."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} is no state_dict: it holds a {type(content).__name__}")
    other = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise CheckpointError(
            f"{path} is no state_dict: its {other!r} is a {type(content[other]).__name__}, not a tensor"
        )
    tensors = {_without_prefixes(str(name)): tensor for name, tensor in content.items()}
    if len(tensors) < len(content):
        raise CheckpointError(f"{path} has tensors twice, with and without {' or '.join(PREFIXES)} before their names")
    return tensors


def _check_sums(path: Path) -> None:
    """Compare what torch does not: the CRC-32 of each part of a zip. Raises ValueError."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            if (damaged := parts.testzip()) is not None:
                raise ValueError(f"its part {damaged} is damaged")


def _reason(error: Exception) -> str:
    """The line of torch's words that says what is wrong."""
    words = str(error)
    if found := re.search(r"GLOBAL (\S+)", words):
        return f"it would import {found[1]}, and nothing but tensors is read; nothing in it was run"
    if found := re.search(r"WeightsUnpickler error: (.+)", words):
        return f"{found[1]}; nothing but tensors is read"
    if "WeightsUnpickler" in words:
        return "it holds more than tensors; nothing in it was run"
    if isinstance(error, EOFError) or "central directory" in words:
        return "it is cut short; copy it again"
    return next(iter(words.splitlines()), "")[:200] or type(error).__name__


def _without_prefixes(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.removeprefix(next(prefix for prefix in PREFIXES if name.startswith(prefix)))
    return name

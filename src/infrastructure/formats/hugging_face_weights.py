"""The tensors of a Hugging Face folder: one file or several, safetensors or, never executed, torch.save's."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.formats.configs import read_json
from smallgpt.infrastructure.formats.pickled import load_tensors
from smallgpt.infrastructure.formats.portable import MASKS

INDEX = ".index.json"
NAMES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
"""The best first."""


def weights_file(folder: Path) -> Path:
    """Its weights, or the index of their parts. Raises CheckpointError."""
    found = next((folder / name for name in NAMES if (folder / name).exists()), None)
    if found is None:
        raise CheckpointError(f"{folder} has no weights: none of {', '.join(NAMES)}")
    return found


def load_weights(folder: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Every tensor by its name in the files, and what is to be said about them. Raises CheckpointError."""
    file = weights_file(folder)
    tensors = _of_index(file) if file.name.endswith(INDEX) else _of_file(file)
    return tensors, (*_other_kind(folder, file), *_other_numbers(tensors))


def shards(index: Path) -> tuple[str, ...]:
    """The files that an index names, each once. Raises CheckpointError for one outside the index's own folder."""
    return tuple(dict.fromkeys(_weight_map(index).values()))


def _of_index(index: Path) -> dict[str, Tensor]:
    owner, tensors = _weight_map(index), dict[str, Tensor]()
    for shard in shards(index):
        if not (index.parent / shard).is_file():
            raise CheckpointError(
                f"{index.parent / shard} is missing; {index.name} says that it holds a part of the weights"
            )
        for name, tensor in _of_file(index.parent / shard).items():
            if owner.get(name, shard) == shard:
                tensors[name] = tensor
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """File by tensor."""
    owner = read_json(index).get("weight_map")
    if not isinstance(owner, dict) or not owner:
        raise CheckpointError(f"{index} has no weight_map, which says where each tensor is")
    for shard in owner.values():
        if not isinstance(shard, str) or shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise CheckpointError(f"{index} names {shard!r}, which is no file beside it; nothing else is opened")
    return owner


def _of_file(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        return load_tensors(file)
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {str(error).splitlines()[0]}; fetch or copy it again") from None
    return tensors


def _other_kind(folder: Path, chosen: Path) -> Iterator[str]:
    if ".safetensors" not in chosen.name:
        return
    others = [name for name in NAMES if ".bin" in name and (folder / name).exists()]
    if others:
        yield f"weights were taken from {chosen.name}; {others[0]} was not opened"


def _other_numbers(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    kinds = {tensor.dtype for name, tensor in tensors.items() if not name.endswith(MASKS)} - {torch.float32}
    if kinds:
        yield f"weights were {' and '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))}, and are float32 now"

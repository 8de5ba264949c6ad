"""What stands in a GGUF file, read without trusting a length in it: every one is held against what is left of the file.

A header of four numbers, metadata by key, a list of tensors (name, sizes, kind, offset), padding, and their numbers.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. All little-endian; versions 2 and 3 are read alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.formats.ranges import overlap

Bytes = npt.NDArray[np.uint8]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = ("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8")
"""NumPy's name for each kind of value, by its number; 8 is a text and 9 an array."""
TEXT, ARRAY = 8, 9
DIMENSIONS = 4
"""ggml's tensors have no more."""


class Kind(NamedTuple):
    """How the numbers of a tensor are kept."""

    name: str
    block: int
    """Numbers that are kept together, along a row."""
    size: int
    """Bytes of a block."""
    numbers: Callable[[Bytes], npt.NDArray[np.float32]]
    """Blocks (N, size) -> (N, block) float32."""


def _q8_0(blocks: Bytes) -> npt.NDArray[np.float32]:
    """A float16 factor, then 32 signed bytes to multiply with it."""
    return blocks[:, :2].view("<f2").astype(np.float32) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _bf16(blocks: Bytes) -> npt.NDArray[np.float32]:
    """The upper half of a float32."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


KINDS = {
    0: Kind("F32", 1, 4, lambda blocks: blocks.view("<f4")),
    1: Kind("F16", 1, 2, lambda blocks: blocks.view("<f2").astype(np.float32)),
    8: Kind("Q8_0", 32, 34, _q8_0),
    30: Kind("BF16", 1, 2, _bf16),
}
UNREAD = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}
"""Names of common kinds that lose too much to be read as a model's weights."""


class Place(NamedTuple):
    """Where a tensor is."""

    shape: tuple[int, ...]
    """Outermost first, as NumPy and torch have it; the file has it the other way round."""
    kind: int
    start: int
    """The first byte, counted from the first tensor's."""


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file's metadata, and its tensors on demand."""

    path: Path
    metadata: dict[str, Any]
    places: dict[str, Place]
    content: Bytes
    """Of the tensors, in the file, not in memory."""

    def value(self, key: str) -> Any:
        """The metadata of that key. Raises CheckpointError where there is none."""
        if key not in self.metadata:
            raise CheckpointError(f"{self.path} has no {key}; it is no GGUF file of a GPT-2, or an incomplete one")
        return self.metadata[key]

    def tensor(self, name: str) -> Tensor:
        """A tensor as float32. Raises CheckpointError for a kind that is not read, and when it is outside of the file."""
        shape, number, start = self.places[name]
        if number not in KINDS:
            raise CheckpointError(
                f"{self.path}: {name} is quantized as {UNREAD.get(number, f'kind {number}')}; smallgpt reads "
                f"{', '.join(kind.name for kind in KINDS.values())}, so give a file with one of these"
            )
        kind, size = KINDS[number], _size(self.places[name])
        if shape[-1] % kind.block:
            raise CheckpointError(
                f"{self.path}: {name} has rows of {shape[-1]}, no multiple of {kind.name}'s {kind.block}"
            )
        if start + size > len(self.content):
            raise CheckpointError(
                f"{self.path} is cut short: {name} ends {start + size - len(self.content):,} bytes after the file does; "
                "fetch or export it again"
            )
        blocks = np.array(self.content[start : start + size]).reshape(-1, kind.size)
        return torch.from_numpy(kind.numbers(blocks).reshape(shape))


def _size(place: Place) -> int:
    """Bytes of a tensor; 0 where its kind is not known."""
    kind = KINDS.get(place.kind)
    return 0 if kind is None else prod(place.shape) // kind.block * kind.size


def read_gguf(path: Path) -> GgufFile:
    """What stands in a GGUF file. Raises CheckpointError for one that is missing, cut short or of another kind."""
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    cursor = _Cursor(path, content)
    if bytes(cursor.take(4)) != MAGIC:
        raise CheckpointError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}")
    version = cursor.number("<u4")
    if version not in VERSIONS:
        big = " (perhaps a big-endian file)" if version > 0xFFFF else ""
        raise CheckpointError(
            f"{path} is GGUF of version {version}{big}; smallgpt reads versions 2 and 3, little-endian"
        )
    tensors, values = cursor.count(24), cursor.count(13)  # no tensor and no value is written in fewer bytes
    metadata = {}
    for _ in range(values):
        key = cursor.text()
        if key in metadata:
            cursor.refuse(f"{key} is there twice")
        metadata[key] = cursor.value(cursor.number("<u4"))
    places = {}
    for _ in range(tensors):
        name = cursor.text()
        if name in places:
            cursor.refuse(f"the tensor {name} is there twice")
        places[name] = cursor.place()
    if shared := overlap((place.start, _size(place), name) for name, place in places.items()):
        cursor.refuse(f"the tensors {' and '.join(shared)} share bytes")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        cursor.refuse(f"general.alignment is {alignment!r}")
    return GgufFile(path, metadata, places, content[cursor.at + -cursor.at % alignment :])


class _Cursor:
    """Reads on from where it is, and never past the end."""

    def __init__(self, path: Path, content: Bytes) -> None:
        self.path, self.content, self.at = path, content, 0

    def refuse(self, reason: str) -> NoReturn:
        raise CheckpointError(f"{self.path} is damaged: {reason}; fetch or export it again")

    def take(self, size: int) -> Bytes:
        """The next bytes."""
        left = len(self.content) - self.at
        if size > left:
            self.refuse(f"it goes on for {size:,} bytes at byte {self.at:,}, and {left:,} are left")
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, kind: str) -> Any:
        """One number of a NumPy kind, as a Python one."""
        return np.frombuffer(self.take(np.dtype(kind).itemsize), kind)[0].item()

    def count(self, smallest: int) -> int:
        """A number of things of at least so many bytes each."""
        count: int = self.number("<u8")
        left = len(self.content) - self.at
        if count * smallest > left:
            self.refuse(f"it announces {count:,} things at byte {self.at - 8:,}, and {left:,} bytes are left for them")
        return count

    def text(self) -> str:
        try:
            return bytes(self.take(self.count(1))).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"the text before byte {self.at:,} is not UTF-8")

    def value(self, kind: int) -> Any:
        """A value of metadata: a number, a text or a list of either."""
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            return self._values()
        return self.number(self._scalar(kind))

    def place(self) -> Place:
        dimensions = self.number("<u4")
        if not 1 <= dimensions <= DIMENSIONS:
            self.refuse(f"a tensor of {dimensions} dimensions before byte {self.at:,}")
        shape = tuple(self.number("<u8") for _ in range(dimensions))[::-1]
        if 0 in shape:
            self.refuse(f"an empty tensor before byte {self.at:,}")
        kind, start = self.number("<u4"), self.number("<u8")
        return Place(shape, kind, start)

    def _values(self) -> list[Any]:
        kind = self.number("<u4")
        if kind == TEXT:
            return [self.text() for _ in range(self.count(8))]
        scalar = np.dtype(self._scalar(kind))
        values: list[Any] = np.frombuffer(self.take(self.count(scalar.itemsize) * scalar.itemsize), scalar).tolist()
        return values

    def _scalar(self, kind: int) -> str:
        scalar = SCALARS[kind] if kind < len(SCALARS) else None
        if scalar is None:  # also an array of arrays, which no GPT-2 has
            self.refuse(f"a value of kind {kind} before byte {self.at:,}")
        return scalar

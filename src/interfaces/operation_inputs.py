"""What operations are called with: several sets of random operands, so that a CPU's cache is not what is measured."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from math import ceil

import torch
from torch import Tensor

from smallgpt.infrastructure.hardware import last_level_cache

MOST_SETS = 100  # a round has as many repeats at most
USUAL_CACHE = 32 * 2**20  # where the machine does not tell


@dataclass(frozen=True)
class Operands:
    """What an operation is called with, and the gradients of its outputs."""

    leaves: tuple[Tensor, ...]
    fixed: tuple[Tensor, ...] = ()
    """Not differentiated."""
    upstream: tuple[Tensor, ...] | None = None
    """None for a scalar loss."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (*self.leaves, *self.fixed, *(self.upstream or ()))

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(x.numel() * x.element_size() for x in self.tensors)

    def placed(self, device: torch.device, dtype: torch.dtype) -> "Operands":
        """On a device, in dtype what is not an index; rounded to bf16 first, so that all dtypes get the same numbers."""
        leaves = tuple(x.bfloat16().to(device, dtype).requires_grad_() for x in self.leaves)
        upstream = None if self.upstream is None else tuple(x.bfloat16().to(device, dtype) for x in self.upstream)
        return Operands(leaves, tuple(x.to(device) for x in self.fixed), upstream)


class InputSets:
    """Sets of operands in turn: together twice the last-level cache of a CPU, so that none is in it when it is used.

    At most MOST_SETS: smaller operands than a hundredth of the cache would be in it in a real program too. On a GPU there
    is one set, because a CUDA graph is captured with its operands; there the stopwatch overwrites the L2 cache.
    """

    def __init__(self, make: Callable[[], Operands], device: torch.device) -> None:
        self.cache_bytes = 0 if device.type == "cuda" else last_level_cache() or USUAL_CACHE
        first = make()
        count = max(1, min(MOST_SETS, ceil(2 * self.cache_bytes / first.bytes)))
        self.sets = [first, *(make() for _ in range(count - 1))]
        self._turns = cycle(self.sets)

    def next(self) -> Operands:
        """The one that was used longest ago."""
        return next(self._turns)

    def evict(self, kept: Operands) -> None:
        """Read other sets, as many as fill the cache: what was computed from `kept` just now must come from memory."""
        bytes_read = 0
        for other in self.sets:
            if other is not kept and bytes_read < self.cache_bytes:
                bytes_read += other.bytes
                for x in other.tensors:
                    x.detach().sum()

    @property
    def words(self) -> str:
        """How many there are, for people."""
        together = (
            f"{len(self.sets)} input sets in turn, {len(self.sets) * self.sets[0].bytes / 2**20:,.3g} MiB together"
        )
        if self.cache_bytes == 0:
            return "1 input set; the L2 cache is overwritten before every repeat"
        return f"{together} (last-level cache {self.cache_bytes / 2**20:,.3g} MiB)"

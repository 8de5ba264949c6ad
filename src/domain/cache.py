"""Keys and values of the tokens read so far, so that a new token costs one row of work instead of the whole context."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from smallgpt.domain.config import GPTConfig


class KVCache:
    """block_size slots for each of `batch` sequences and every layer, filled from the left.

    It knows nothing of how far each sequence has come: `after` is told, and gives what one forward pass needs.
    """

    def __init__(self, config: GPTConfig, batch: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        shape = (config.n_layer, batch, 2, config.n_head, config.block_size, config.head_size)
        self.slots = torch.zeros(shape, device=device, dtype=dtype)
        self.block_size = config.block_size

    def after(self, lengths: Sequence[int], n_new: int, first: int = 0) -> "Past":
        """What a forward pass over n_new tokens of the rows `first` and on needs, when row first + i holds lengths[i] tokens.

        Rows with fewer new tokens are padded at the right: what is stored for padding is overwritten before it is seen.
        Raises ValueError when the tokens do not fit.
        """
        longest = max(lengths)
        if longest + n_new > self.block_size:
            raise ValueError(f"{longest + n_new} tokens do not fit the model's context of {self.block_size}")
        slots = self.slots[:, first : first + len(lengths)]
        if min(lengths) == longest:
            return EvenPast(slots, longest, n_new)
        return RaggedPast(slots, torch.tensor(lengths, device=slots.device), n_new, longest + n_new)

    def after_on_device(self, lengths: Tensor) -> "Past":
        """The same for one new token a row, with lengths (B,) int64 on the device: nothing depends on their values.

        Every slot is read and what lies behind a row's length is masked, so the pass can be captured in a CUDA graph.
        """
        return RaggedPast(self.slots[:, : len(lengths)], lengths, 1, self.block_size)

    def move(self, source: int, target: int) -> None:
        """Copy what the row `source` holds to the row `target`."""
        self.slots[:, target] = self.slots[:, source]


class Past(Protocol):
    """The part of a cache that one forward pass reads and fills."""

    is_empty: bool
    """Nothing was read before, so that causal attention over the new tokens is all there is."""
    positions: Tensor
    """Of the new tokens: (T,), or (B, T) where rows differ."""

    def append(self, layer: int, qkv: Tensor) -> None:
        """Store the keys and values of qkv (B, T, 3, H, D) behind each row's own."""

    def layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (B, S, H, D) up to the newest, and lengths (B,): what CachedAttention takes after q."""


class EvenPast:
    """Rows that are alike: slices of the cache will do, and one new token a row needs no mask."""

    def __init__(self, slots: Tensor, length: int, n_new: int) -> None:
        """slots (n_layer, B, 2, H, S, D)."""
        end = length + n_new
        self.is_empty = length == 0
        self.positions = torch.arange(length, end, device=slots.device)
        self.new = slots[..., length:end, :].transpose(3, 4)  # (n_layer, B, 2, T, H, D)
        read = slots[..., :end, :].transpose(3, 4)
        self.keys, self.values = read[:, :, 0], read[:, :, 1]  # (n_layer, B, S, H, D) each
        self.lengths = torch.full((slots.size(1),), end, device=slots.device) if n_new > 1 else None

    def append(self, layer: int, qkv: Tensor) -> None:
        """See Past."""
        self.new[layer].copy_(qkv[:, :, 1:].transpose(1, 2))

    def layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """See Past."""
        return self.keys[layer], self.values[layer], self.lengths


class RaggedPast:
    """Rows that are not: each new token is stored at its own place, and what a row does not hold is masked."""

    def __init__(self, slots: Tensor, starts: Tensor, n_new: int, end: int) -> None:
        """slots (n_layer, B, 2, H, S, D), of which the first `end` are read; starts (B,) int64."""
        self.is_empty = False
        self.positions = starts[:, None] + torch.arange(n_new, device=slots.device)
        self.rows = torch.arange(len(starts), device=slots.device)[:, None]
        self.by_position = slots.permute(0, 2, 1, 4, 3, 5)  # (n_layer, 2, B, S, H, D)
        self.lengths, self.end = starts + n_new, end

    def append(self, layer: int, qkv: Tensor) -> None:
        """See Past."""
        for which in (0, 1):
            self.by_position[layer, which][self.rows, self.positions] = qkv[:, :, which + 1].to(self.by_position.dtype)

    def layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """See Past."""
        k, v = self.by_position[layer, :, :, : self.end]
        return k, v, self.lengths

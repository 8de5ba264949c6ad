"""Keys and values of the tokens read so far, so that a new token costs one row of work instead of the whole context."""

import torch
from torch import Tensor

from smallgpt.domain.config import GPTConfig


class KVCache:
    """block_size slots for each of `batch` sequences and every layer, filled from the left, all rows alike."""

    def __init__(self, config: GPTConfig, batch: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        shape = (config.n_layer, 2, batch, config.block_size, config.n_head, config.head_size)
        self.slots = torch.zeros(shape, device=device, dtype=dtype)
        self.used = 0
        self.pending = 0

    def append(self, layer: int, qkv: Tensor) -> bool:
        """Store the keys and values of qkv (B, T, 3, H, D) behind the used slots; True when there is no past to attend to."""
        self.pending = qkv.size(1)
        end = self.used + self.pending
        self.slots[layer, 0, :, self.used : end] = qkv[:, :, 1]
        self.slots[layer, 1, :, self.used : end] = qkv[:, :, 2]
        return self.used == 0

    def layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (B, S, H, D) up to the newest, and lengths (B,): what CachedAttention takes after q."""
        end = self.used + self.pending
        k, v = self.slots[layer, :, :, :end]
        return k, v, torch.full((k.size(0),), end, device=k.device)

    def advance(self, n_tokens: int) -> None:
        """Count n_tokens as read, once every layer has stored them."""
        self.used += n_tokens

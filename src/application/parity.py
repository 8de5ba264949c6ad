"""Is it the same model? Logits on fixed and random inputs, and a greedy continuation, of two ways to compute it.

Two right programs round differently: in float32 by about a millionth of the largest logit, so that 1e-4 is little where
logits are beyond 100, as OpenAI's GPT-2 has them. Such models are compared in float64 too, where the same bounds are far
above any rounding (tests/interfaces/test_converting.py has one).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from smallgpt.domain.config import GPTConfig

Logits = Callable[[Tensor], Tensor]
"""(B, T) int64 -> (B, T, V) float32."""

ABSOLUTE, RELATIVE = 1e-4, 1e-5
"""How far logits may be apart: the most, and the most as a share of the largest of them. Rounding alone stays below."""
GREEDY_TOKENS, N_PROMPT = 64, 8


@dataclass(frozen=True)
class Parity:
    """How near two ways to compute a model are."""

    positions: int
    """Whose logits were compared, every id's."""
    max_difference: float
    largest_logit: float
    greedy_equal: int
    """Tokens of the two greedy continuations that are equal, counted up to the first that is not."""
    greedy_tokens: int = GREEDY_TOKENS
    dtype: Literal["float32", "float64"] = "float32"
    """In which both were computed."""

    @property
    def relative(self) -> float:
        """The largest difference as a share of the largest logit."""
        return self.max_difference / self.largest_logit if self.largest_logit else self.max_difference

    @property
    def passed(self) -> bool:
        """Is it the same model?"""
        near = self.max_difference <= ABSOLUTE and self.relative <= RELATIVE  # False for nan
        return near and self.greedy_equal == self.greedy_tokens

    def as_dict(self) -> dict[str, Any]:
        """For a program to read."""
        return {
            "passed": self.passed,
            "dtype": self.dtype,
            "positions": self.positions,
            "max_difference": self.max_difference,
            "relative_difference": self.relative,
            "largest_logit": self.largest_logit,
            "greedy_equal": self.greedy_equal,
            "greedy_tokens": self.greedy_tokens,
        }


def compare(
    ours: Logits, theirs: Logits, config: GPTConfig, dtype: Literal["float32", "float64"] = "float32"
) -> Parity:
    """Compare two ways to compute a model of these sizes, both in dtype."""
    positions, largest, difference = 0, 0.0, torch.zeros(())
    for idx in _inputs(config):
        expected, found = ours(idx), theirs(idx)
        positions += idx.numel()
        largest = max(largest, float(expected.abs().max()))
        difference = torch.maximum(difference, (expected - found).abs().max())  # keeps nan, as max() does not
    ids = _greedy(ours, config)
    same = (_choices(theirs, ids, config.block_size) == ids[N_PROMPT:]).tolist()
    equal = same.index(False) if False in same else GREEDY_TOKENS
    return Parity(positions, float(difference), largest, equal, dtype=dtype)


def _inputs(config: GPTConfig) -> Iterator[Tensor]:
    """A single token, all ids in turn, and random ones, up to the longest context."""
    generator = torch.Generator().manual_seed(0)
    block, vocab = config.block_size, config.vocab_size
    yield torch.zeros(1, 1, dtype=torch.int64)
    yield torch.arange(block)[None] % vocab
    yield torch.randint(vocab, (1, block), generator=generator)
    yield torch.randint(vocab, (3, -(-block // 3)), generator=generator)


def _greedy(logits: Logits, config: GPTConfig) -> Tensor:
    """The first ids and their likeliest continuation, of which the last block_size tokens are seen."""
    ids = torch.arange(N_PROMPT) % config.vocab_size
    for _ in range(GREEDY_TOKENS):
        ids = torch.cat([ids, logits(ids[None, -config.block_size :])[0, -1:].argmax(-1)])
    return ids


def _choices(logits: Logits, ids: Tensor, block_size: int) -> Tensor:
    """What is likeliest after each of the prefixes that `ids` (N,) continues.

    As long as it is what `ids` goes on with, that is the other way's own continuation, for two passes instead of one a token.
    """
    before, first = ids[:-1], min(block_size, len(ids) - 1)
    chosen = logits(before[None, :first])[0].argmax(-1)  # (first,)
    if first < len(before):
        windows = before.unfold(0, block_size, 1)[1:]  # (N - 1 - first, block_size)
        chosen = torch.cat([chosen, logits(windows)[:, -1].argmax(-1)])
    return chosen[N_PROMPT - 1 :]

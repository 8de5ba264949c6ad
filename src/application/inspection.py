"""What a model makes of a few tokens, in numbers that a person can read: predictions, logit lens, attention, norms."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smallgpt.domain.gpt import GPT
from smallgpt.domain.hooks import logit_lens, run_with_cache
from smallgpt.domain.sampling import log_probabilities

WANTED = ("hook_resid_pre", "hook_resid_post", "hook_pattern")

Likeliest = tuple[tuple[int, float], ...]
"""Ids and their probabilities, likeliest first."""


@dataclass(frozen=True)
class Head:
    """Where an attention head looks. Shares are of its attention, averaged over the tokens after the first."""

    layer: int
    head: int
    entropy: float
    """Bits: 0 looks at one token, k at 2^k of them evenly."""
    first: float
    previous: float
    itself: float
    most: Likeliest
    """The positions that the inspected token looks at most, and their shares."""


@dataclass(frozen=True)
class Inspection:
    """A text as the model sees it; `at` is the position whose token is followed through the blocks."""

    at: int
    given: tuple[float | None, ...]
    """The probability that each token had, given those before it; None for the first."""
    next: tuple[Likeliest, ...]
    """What is likeliest to follow each token."""
    lens: tuple[Likeliest, ...]
    """What would follow the token `at` if the model ended after the embedding, after block 0, after block 1, ..."""
    norms: tuple[float, ...]
    """Length of the token's residual stream at the same places."""
    heads: tuple[Head, ...]
    patterns: Tensor
    """(n_layer, H, T, T) attention weights, queries by keys."""


@torch.no_grad()
def inspect(model: GPT, idx: Tensor, at: int, n_tokens: int | None = None, top: int = 3) -> Inspection:
    """Look at tokens (1, T) int64, at one of them closely; ids from n_tokens on are padding of the vocabulary."""
    logits, cache = run_with_cache(model, idx, lambda name: name.endswith(WANTED))
    layers = range(model.config.n_layer)
    stream = [cache["blocks.0.hook_resid_pre"], *(cache[f"blocks.{layer}.hook_resid_post"] for layer in layers)]
    places = torch.stack([residual[0, at] for residual in stream])  # (1 + n_layer, C)
    patterns = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"][0] for layer in layers])
    after = log_probabilities(logits[0], n_tokens).exp()  # (T, V)
    given = after[:-1].gather(1, idx[0, 1:, None])[:, 0].tolist()
    return Inspection(
        at,
        (None, *given),
        _likeliest(after, top),
        _likeliest(log_probabilities(logit_lens(model, places), n_tokens).exp(), top),
        tuple(places.norm(dim=-1).tolist()),
        tuple(_head(patterns, layer, head, at, top) for layer in layers for head in range(model.config.n_head)),
        patterns,
    )


def _head(patterns: Tensor, layer: int, head: int, at: int, top: int) -> Head:
    pattern = patterns[layer, head]  # (T, T)
    rows = pattern[1:] if len(pattern) > 1 else pattern  # the first token can look at nothing but itself
    itself, previous = pattern.diagonal()[-len(rows) :], pattern.diagonal(-1)
    return Head(
        layer,
        head,
        torch.special.entr(rows).sum(-1).mean().item() / torch.tensor(2.0).log().item(),
        rows[:, 0].mean().item(),
        previous.mean().item() if len(previous) else 0.0,
        itself.mean().item(),
        _likeliest(pattern[None, at, : at + 1], top)[0],
    )


def _likeliest(probabilities: Tensor, top: int) -> tuple[Likeliest, ...]:
    """Of each row (..., V)."""
    best = probabilities.topk(min(top, probabilities.size(-1)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(tuple(zip(ids, values, strict=True)) for ids, values in pairs)

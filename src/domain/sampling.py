"""From logits to a token, in small pure steps. Every filter keeps shape (B, V) and marks what it removes with -inf."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from smallgpt.domain.errors import ConfigError, NumericsError


@dataclass(frozen=True)
class Sampling:
    """How to choose. Raises ConfigError for a value outside its range."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int | None = None
    """Keep the k most likely tokens."""
    top_p: float | None = None
    """Keep the smallest set of most likely tokens whose probability reaches p (nucleus sampling, arXiv 1904.09751)."""
    min_p: float | None = None
    """Keep tokens at least this many times as likely as the most likely one (arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that already occurred less likely (CTRL, arXiv 1909.05858)."""
    n_tokens: int | None = None
    """Ids from here on are padding of the vocabulary and are never chosen."""

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, isfinite(self.temperature) and self.temperature >= 0, "0 or more")
        _check("top-k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or more")
        _check("top-p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("min-p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1")
        penalty = self.repetition_penalty
        _check("repetition-penalty", penalty, 0.01 <= penalty <= 100, "between 0.01 and 100")


def _check(name: str, value: object, valid: bool, wanted: str) -> None:
    if not valid:
        raise ConfigError(f"{name} is {value}; it must be {wanted}")


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of the tokens in seen (B, T) by the penalty and multiply negative ones."""
    scores = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(scores > 0, scores / penalty, scores * penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Remove all but the k largest (ties with the k-th stay)."""
    kth = logits.topk(min(k, logits.size(-1))).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Remove the tail that the most likely tokens, together at least p, do not need."""
    ordered, order = logits.sort(descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # mass of the tokens that are more likely
    tail = (before >= p) & (before > 0)  # the likeliest stays, even where p is 0 but for rounding
    return logits.masked_fill(tail.scatter(1, order, tail), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Remove tokens less likely than p times the most likely one."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def filter_logits(logits: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """Logits (B, V) after every filter in its fixed order: padding, repetition, temperature, top-k, top-p, min-p."""
    logits = logits.float()
    if sampling.n_tokens is not None:
        logits = logits[:, : sampling.n_tokens]
    if sampling.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature > 0:
        logits = logits / max(sampling.temperature, 1e-6)  # anything smaller is greedy too, but overflows
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:  # at 1, rounding would cut a large vocabulary's tail
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def next_token(logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """logits (B, V), tokens so far (B, T) -> the chosen tokens (B, 1) int64. Raises NumericsError for nan or inf logits."""
    check_finite(logits)
    logits = filter_logits(logits, seen, sampling)
    if sampling.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)


def next_token_at(logits: Tensor, seen: Tensor, sampling: Sampling, draws: Tensor) -> Tensor:
    """next_token by the random numbers draws (B, 1) float64, uniform in [0, 1), so that each row can have its own generator.

    The token at which the cumulative probability passes the draw. torch.multinomial takes a random number for every entry
    of the vocabulary, which takes far longer. Raises NumericsError for nan or inf logits.
    """
    if sampling.temperature > 0 or sampling.repetition_penalty != 1.0:
        logits = filter_logits(logits, seen, sampling)
    if sampling.temperature == 0:  # no other filter takes the likeliest away
        best, tokens = logits[:, : sampling.n_tokens].max(-1, keepdim=True)
        check_finite(best)
        return tokens
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    check_finite(total)
    below = torch.minimum(draws * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, below, right=True)


def check_finite(logits: Tensor) -> None:
    """Raise NumericsError for nan or inf among logits, or what was made of them."""
    # a sum keeps nan and inf, and is quicker than a look at each; of finite numbers, one in float64 stays finite
    if not torch.isfinite(logits.sum(dtype=torch.float64)):
        raise NumericsError("the model's logits are not finite; its weights are damaged or its precision overflowed")


def log_probabilities(logits: Tensor, n_tokens: int | None) -> Tensor:
    """The model's own, before temperature and filters: logits (B, V) -> natural logarithms (B, n_tokens or V)."""
    return logits[:, :n_tokens].float().log_softmax(-1)

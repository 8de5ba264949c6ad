"""Numbers that say how good and how fast: bits per byte with its interval, FLOPs, and n-gram baselines."""

from dataclasses import dataclass
from math import exp, log, sqrt

import torch
from torch import Tensor

from smallgpt.domain.config import GPTConfig


@dataclass(frozen=True)
class Score:
    """A model's cross-entropy on a text. Smoothing never enters it."""

    nats: float
    """Summed over every predicted token, end-of-text included."""
    tokens: int
    """Predicted tokens."""
    text_bytes: int | None
    """UTF-8 bytes of the text without document separators; None when unknown (adopted token files)."""
    block_variance: float = 0.0
    """Variance of a block's summed nats, for the interval."""
    blocks: int = 1

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """nats ÷ ln 2 ÷ bytes: comparable between tokenizers."""
        return None if not self.text_bytes else self.nats / log(2) / self.text_bytes

    @property
    def bits_per_byte_interval(self) -> tuple[float, float] | None:
        """95 % interval: blocks taken as independent, so the sum's standard error is √(blocks · variance).

        None when the bytes are unknown, and for a single block, which has no spread.
        """
        if self.bits_per_byte is None or not self.text_bytes or self.blocks < 2:
            return None
        half = 1.96 * sqrt(self.blocks * self.block_variance) / log(2) / self.text_bytes
        return self.bits_per_byte - half, self.bits_per_byte + half

    def as_dict(self) -> dict[str, float | int | list[float] | None]:
        """What `--json` and metrics.jsonl show."""
        interval = self.bits_per_byte_interval
        return {
            "nats_per_token": self.nats_per_token,
            "bits_per_byte": self.bits_per_byte,
            "bits_per_byte_interval": None if interval is None else list(interval),
            "perplexity": self.perplexity,
            "tokens": self.tokens,
            "bytes": self.text_bytes,
        }


def flops_per_token(config: GPTConfig, context: int | None = None) -> int:
    """Matrix-product FLOPs of one trained token, forward and backward: 6 a weight, plus 12·n_embd a visible key per layer.

    Attention's QKᵀ and PV take 4·C FLOPs a visible key forward and twice that backward; a causal token sees (T+1)/2 keys
    on average (arXiv 2204.02311, appendix B, counts T).
    """
    T = context or config.block_size
    C = config.n_embd
    weights = config.n_layer * 12 * C * C + config.vocab_size * C
    attention = config.n_layer * 12 * C * (T + 1) // 2
    return 6 * weights + attention


def ngram_baselines(train: Tensor, held_out: Tensor, vocab_size: int) -> dict[str, float]:
    """Nats per token on held_out (M,) of tables counted on train (N,), both int64: uniform, unigram, bigram, trigram.

    Interpolated Kneser-Ney (Chen & Goodman 1998) with one discount per order, n1 / (n1 + 2 n2); the unigram of the
    bigram and trigram is the continuation count, smoothed by adding one; `unigram` itself is the add-one frequency.
    """
    V = vocab_size
    if V**3 >= 2**63:
        raise ValueError(f"a vocabulary of {V} ids does not fit trigram keys of 63 bits")
    counts = torch.bincount(train, minlength=V).double() + 1
    frequency = (counts / counts.sum())[held_out]

    pairs = train[:-1] * V + train[1:]
    triples = pairs[:-1] * V + train[2:]
    kinds = torch.unique(pairs)  # each distinct pair once
    continuation = torch.bincount(kinds % V, minlength=V).double() + 1
    p1 = (continuation / continuation.sum())[held_out]

    # as the highest order the bigram uses raw counts; below the trigram it uses how many contexts a pair completes
    p2 = _interpolate(pairs, held_out[:-1] * V + held_out[1:], V, p1[1:])
    p2_lower = _interpolate(torch.unique(triples) % (V * V), held_out[:-1] * V + held_out[1:], V, p1[1:])
    p3 = _interpolate(triples, (held_out[:-2] * V + held_out[1:-1]) * V + held_out[2:], V, p2_lower[1:])
    return {
        "uniform": log(V),
        "unigram": -frequency.log().mean().item(),
        "bigram": -torch.cat([p1[:1], p2]).log().mean().item(),
        "trigram": -torch.cat([p1[:1], p2[:1], p3]).log().mean().item(),
    }


def _interpolate(seen: Tensor, queries: Tensor, V: int, lower: Tensor) -> Tensor:
    """Discounted probability of each query's last token after its context; keys are context · V + token."""
    keys, counts = torch.unique(seen, return_counts=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    contexts, context_of = torch.unique(keys // V, return_inverse=True)
    total = torch.zeros(len(contexts), dtype=torch.float64).index_add_(0, context_of, counts.double())
    distinct = torch.bincount(context_of, minlength=len(contexts)).double()

    count = _lookup(keys, counts.double(), queries)
    context_total = _lookup(contexts, total, queries // V)
    context_distinct = _lookup(contexts, distinct, queries // V)
    known = context_total > 0
    safe_total = torch.where(known, context_total, torch.ones_like(context_total))
    seen_share = (count - discount).clamp_min(0) / safe_total
    backed_off = torch.where(known, discount * context_distinct / safe_total, torch.ones_like(context_total))
    return seen_share + backed_off * lower


def _lookup(sorted_keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """values of the queries found among sorted_keys, 0 for the others."""
    if len(sorted_keys) == 0:  # a text of fewer tokens than the table's order
        return torch.zeros(len(queries), dtype=values.dtype)
    at = torch.searchsorted(sorted_keys, queries).clamp_max(len(sorted_keys) - 1)
    return torch.where(sorted_keys[at] == queries, values[at], torch.zeros_like(values[at]))

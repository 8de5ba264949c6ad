"""Numbers on the screen against their definitions, worked out slowly."""

from collections import Counter, defaultdict
from itertools import pairwise
from math import exp, log, sqrt

import pytest
import torch

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.metrics import Score, flops_per_token, ngram_baselines

TEXT = "the cat sat on the mat. the dog sat on the log. a cat and a dog met on the mat and sat. " * 2 + "the end of it."
HELD_OUT = "the dog met the cat on the log. a zebra sat on it."


def ids(text: str) -> list[int]:
    return [ord(c) % 64 for c in text]


class SlowKneserNey:
    """Interpolated Kneser-Ney from dictionaries, one probability at a time (Chen & Goodman 1998)."""

    def __init__(self, train: list[int], V: int) -> None:
        self.V = V
        self.unigrams = Counter(train)
        self.n = len(train)
        pairs = list(pairwise(train))
        triples = list(zip(train, train[1:], train[2:], strict=False))
        self.continuation = Counter(b for _, b in set(pairs))
        self.bigrams = self.table(dict(Counter(pairs)))
        self.lower_bigrams = self.table(dict(Counter((b, c) for _, b, c in set(triples))))
        self.trigrams = self.table({((a, b), c): n for (a, b, c), n in Counter(triples).items()})

    @staticmethod
    def table(counts: dict[tuple[object, int], int]) -> tuple[dict[object, dict[int, int]], float]:
        by_context: dict[object, dict[int, int]] = defaultdict(dict)
        for (context, token), count in counts.items():
            by_context[context][token] = count
        ones = sum(c == 1 for c in counts.values())
        twos = sum(c == 2 for c in counts.values())
        return by_context, ones / (ones + 2 * twos) if ones else 0.5

    def unigram(self, token: int) -> float:
        return (self.unigrams[token] + 1) / (self.n + self.V)

    def one(self, token: int) -> float:
        return (self.continuation[token] + 1) / (sum(self.continuation.values()) + self.V)

    def interpolate(
        self, table: tuple[dict[object, dict[int, int]], float], context: object, token: int, lower: float
    ) -> float:
        counts, discount = table
        if context not in counts:
            return lower
        total = sum(counts[context].values())
        share = max(counts[context].get(token, 0) - discount, 0) / total
        return share + discount * len(counts[context]) / total * lower

    def two(self, a: int, b: int) -> float:
        return self.interpolate(self.bigrams, a, b, self.one(b))

    def three(self, a: int, b: int, c: int) -> float:
        lower = self.interpolate(self.lower_bigrams, b, c, self.one(c))
        return self.interpolate(self.trigrams, (a, b), c, lower)


def test_the_ngram_lines_are_those_of_plain_dictionaries() -> None:
    train, held_out, V = ids(TEXT), ids(HELD_OUT), 70
    slow = SlowKneserNey(train, V)
    x = held_out
    bigram = [slow.one(x[0]), *(slow.two(a, b) for a, b in pairwise(x))]
    trigram = [*bigram[:2], *(slow.three(a, b, c) for a, b, c in zip(x, x[1:], x[2:], strict=False))]
    expected = {
        "uniform": log(70),
        "unigram": -sum(log(slow.unigram(t)) for t in x) / len(x),
        "bigram": -sum(map(log, bigram)) / len(x),
        "trigram": -sum(map(log, trigram)) / len(x),
    }
    found = ngram_baselines(torch.tensor(train), torch.tensor(held_out), V)
    assert found == pytest.approx(expected, rel=1e-10)
    assert found["uniform"] > found["unigram"] > found["bigram"] > found["trigram"]


def test_the_slow_tables_are_distributions() -> None:
    """The oracle's own check, and so that of the fast one: what follows any context sums to one."""
    slow = SlowKneserNey(ids(TEXT), 70)
    t, h = ids("th")
    for context in (t, h, 69):
        assert sum(slow.two(context, token) for token in range(70)) == pytest.approx(1)
    assert sum(slow.three(t, h, token) for token in range(70)) == pytest.approx(1)
    assert sum(slow.unigram(token) for token in range(70)) == pytest.approx(1)


def test_tables_of_another_text_still_give_every_token_a_chance() -> None:
    lines = ngram_baselines(torch.tensor([1, 2] * 50), torch.tensor([7, 8, 9, 7]), 10)
    assert all(0 < nats < 20 for nats in lines.values())


@pytest.mark.parametrize("length", [1, 2, 3])
def test_texts_of_a_few_tokens_have_lines_too(length: int) -> None:
    few, many = torch.arange(length), torch.arange(9)
    for train, held_out in ((few, many), (many, few), (few, few)):
        assert all(0 < nats < 20 for nats in ngram_baselines(train, held_out, 9).values())


def test_a_vocabulary_too_large_for_triples_is_refused() -> None:
    with pytest.raises(ValueError, match="3000000"):
        ngram_baselines(torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64), 3_000_000)


def test_flops_of_the_seeds_configuration_by_hand() -> None:
    block = 256 * 768 + 256 * 256 + 256 * 1024 + 1024 * 256  # c_attn, c_proj, c_fc, c_proj
    weights = 6 * (4 * block + 50304 * 256)
    # QKᵀ and PV: 2·256 multiply-adds each a visible key, 64.5 keys on average; backward twice forward; 4 layers
    attention = 4 * 3 * (2 + 2) * 256 * 129 // 2
    assert flops_per_token(GPTConfig()) == weights + attention == 96_933_888
    assert flops_per_token(GPTConfig(), context=1) == weights + 4 * 12 * 256
    assert 6 * 50304 * 256 / flops_per_token(GPTConfig()) == pytest.approx(0.80, abs=0.005)


def test_a_score_in_every_unit() -> None:
    score = Score(nats=700.0, tokens=350, text_bytes=1000, block_variance=25.0, blocks=16)
    assert score.nats_per_token == 2.0
    assert score.perplexity == pytest.approx(exp(2))
    assert score.bits_per_byte == pytest.approx(700 / 0.6931471805599453 / 1000)
    low, high = score.bits_per_byte_interval or (0, 0)
    # the sum over 16 blocks has standard error √(16·25) = 20 nats
    assert high - low == pytest.approx(2 * 1.96 * sqrt(16 * 25) / 0.6931471805599453 / 1000)
    assert (low + high) / 2 == pytest.approx(score.bits_per_byte)
    assert score.as_dict() == {
        "nats_per_token": 2.0,
        "bits_per_byte": score.bits_per_byte,
        "bits_per_byte_interval": [low, high],
        "perplexity": score.perplexity,
        "tokens": 350,
        "bytes": 1000,
    }


def test_without_the_texts_size_there_are_no_bits_per_byte() -> None:
    score = Score(nats=10.0, tokens=5, text_bytes=None)
    assert score.bits_per_byte is None
    assert score.bits_per_byte_interval is None


def test_a_hopeless_loss_is_still_a_number() -> None:
    assert Score(nats=1e6, tokens=1, text_bytes=1).perplexity < float("inf")


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        nats = torch.empty(50).exponential_(0.2, generator=torch.Generator().manual_seed(seed))  # mean 5 a block
        score = Score(nats.sum().item(), 500, 100, nats.var().item(), 50)
        low, high = score.bits_per_byte_interval or (0, 0)
        held += low < 250 / log(2) / 100 < high
    assert 0.88 <= held / 200 <= 0.99

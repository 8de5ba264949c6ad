"""The n-gram lines against Kneser-Ney from plain dictionaries, worked out one probability at a time."""

from collections import Counter, defaultdict
from itertools import pairwise
from math import log

import numpy as np
import pytest

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.ngrams import ngram_baselines

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
    found = ngram_baselines(np.array(train), np.array(held_out), V)
    assert found == pytest.approx(expected, rel=1e-12)
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
    lines = ngram_baselines(np.array([1, 2] * 50), np.array([7, 8, 9, 7]), 10)
    assert all(0 < nats < 20 for nats in lines.values())


@pytest.mark.parametrize("length", [1, 2, 3])
def test_texts_of_a_few_tokens_have_lines_too(length: int) -> None:
    few, many = np.arange(length), np.arange(9)
    for train, held_out in ((few, many), (many, few), (few, few)):
        assert all(0 < nats < 20 for nats in ngram_baselines(train, held_out, 9).values())


def test_ids_unseen_in_training_and_a_vocabulary_too_large_for_triples_of_ids() -> None:
    train, held_out = ids(TEXT), [*ids(HELD_OUT), 69, 3, 69]
    spread = np.arange(70, dtype=np.uint32) * 71_003
    small = ngram_baselines(np.array(train, dtype=np.uint16), np.array(held_out, dtype=np.uint16), 5_000_000)
    large = ngram_baselines(spread[train], spread[held_out], 5_000_000)
    assert large == pytest.approx(small, rel=1e-14)
    assert large["uniform"] == log(5_000_000)


def test_more_kinds_of_ids_than_fit_are_refused() -> None:
    noise = np.arange(2**21, dtype=np.uint32)
    with pytest.raises(DataError, match="2,097,152 distinct ids among 2,097,152 tokens are no text"):
        ngram_baselines(noise, noise[:9], 2**21)


def test_numbers_of_any_width_give_the_same_lines() -> None:
    train, held_out = np.array(ids(TEXT)), np.array(ids(HELD_OUT))
    wide = ngram_baselines(train, held_out, 70)
    for dtype in (np.uint16, np.uint32):
        assert ngram_baselines(train.astype(dtype), held_out.astype(dtype), 70) == wide

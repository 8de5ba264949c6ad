"""The share of each validation document that training has, against sets of tuples."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.infrastructure.cleaning import documents
from smallgpt.infrastructure.cleaning.contamination import contamination
from tests.infrastructure.cleaning.made import split_of

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12)


def grams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[at : at + n]) for at in range(len(text) - n + 1)] or [tuple(text)]


@given(TEXTS, TEXTS, st.integers(1, 5))
def test_shares_are_those_of_sets(train: list[list[int]], validation: list[list[int]], n: int) -> None:
    known = {gram for text in train for gram in grams(text, n)}
    expected = [[gram in known for gram in grams(text, n)] for text in validation]
    found = contamination(split_of(train, pieces=1), split_of(validation), n=n)
    assert found.shares.tolist() == pytest.approx([sum(seen) / len(seen) for seen in expected])
    assert (found.grams, found.seen) == (sum(map(len, expected)), sum(map(sum, expected)))
    assert found.checked == len(validation)
    for share in (0.5, 0.8):
        assert found.documents_above(share) == sum(sum(seen) / len(seen) >= share for seen in expected)
    assert found.documents_above(0) == sum(map(any, expected))


def test_the_worst_documents_come_first() -> None:
    long = list(range(100, 140))
    validation = [list(range(40)), long[:20] + list(range(20)), long, list(range(200, 240))]
    found = contamination(split_of([long]), split_of(validation))
    assert found.worst == (2, 1)
    assert found.shares.tolist() == pytest.approx([0, 8 / 28, 1, 0])
    assert found.share == pytest.approx((8 + 28) / (4 * 28))


def test_a_short_document_is_seen_only_as_a_whole() -> None:
    found = contamination(split_of([[1, 2, 3], [7, 8, *range(20)]]), split_of([[1, 2, 3], [1, 2], [7, 8]]))
    assert found.shares.tolist() == [1, 0, 0]


def test_a_large_validation_split_is_sampled() -> None:
    texts = np.random.default_rng(0).integers(0, 5000, (300, 40)).tolist()
    found = contamination(split_of(texts[:150]), split_of(texts), most_grams=3000)
    assert found.checked == 60
    assert np.flatnonzero(~np.isnan(found.shares)).tolist() == list(range(0, 300, 5))
    assert found.share == 0.5


def test_long_documents_are_looked_at_in_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    text = np.random.default_rng(0).integers(0, 5000, 1000).tolist()
    monkeypatch.setattr(documents.DocumentTokens.batches, "__defaults__", (100,))
    found = contamination(split_of([text[:500], [1]]), split_of([text, [2]]), n=3)
    assert found.shares[0] == pytest.approx(0.5, abs=0.02)
    assert found.shares[1] == 0

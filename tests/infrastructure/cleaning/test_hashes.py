"""Numbers for documents and n-grams: equal for equal ids, different for others, however they are read."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.infrastructure.cleaning.hashes import batch_hashes, document_hashes, equal_runs, gram_hashes
from tests.infrastructure.cleaning.made import split_of

TEXTS = st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=2, max_size=30)


@given(TEXTS)
def test_documents_share_a_number_when_they_are_equal(texts: list[list[int]]) -> None:
    hashes = document_hashes(split_of(texts[:1]), split_of(texts[1:]))
    for at, text in enumerate(texts):
        assert [text == other for other in texts] == (hashes == hashes[at]).tolist()


@given(TEXTS, st.integers(1, 9))
def test_how_documents_are_read_does_not_matter(texts: list[list[int]], tokens: int) -> None:
    split = split_of(texts, pieces=2)
    hashes = np.zeros(len(texts), dtype=np.uint64)
    for batch in split.batches(tokens):
        hashes[batch.documents] += batch_hashes(batch)
    assert hashes.tolist() == document_hashes(split_of(texts)).tolist()


@given(TEXTS, st.integers(1, 5))
def test_grams_are_those_of_lists(texts: list[list[int]], n: int) -> None:
    (batch,) = split_of(texts).batches()
    hashes, offsets = gram_hashes(batch, n)
    grams = [tuple(text[at : at + n]) for text in texts for at in range(len(text) - n + 1)]
    assert np.diff(offsets).tolist() == [max(len(text) - n + 1, 0) for text in texts]
    number = dict(zip(grams, hashes.tolist(), strict=True))
    assert [number[gram] for gram in grams] == hashes.tolist()
    assert len(set(number.values())) == len(number)


def test_a_million_documents_and_a_million_grams_have_different_numbers() -> None:
    ids = np.arange(1_000_000)
    pairs = [(a, b) for a in range(300) for b in range(300)]
    assert len(np.unique(document_hashes(split_of(pairs)))) == len(pairs)
    (batch,) = split_of([np.random.default_rng(0).integers(0, 1000, len(ids)).tolist()]).batches()
    assert len(np.unique(gram_hashes(batch, 5)[0])) == len(ids) - 4


@given(st.lists(st.integers(0, 40), max_size=60))
def test_runs_of_equal_numbers(values: list[int]) -> None:
    spread = np.array(values, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    found = [at for run in equal_runs(spread) for at in run.tolist()]
    assert sorted(found) == [at for at, value in enumerate(values) if values.count(value) > 1]
    for run in equal_runs(spread):
        groups = [values[at] for at in run]
        assert all(a == b for a, b in zip(groups, sorted(groups, key=groups.index), strict=True))

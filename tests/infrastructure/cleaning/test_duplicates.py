"""The first of equal documents stays, and validation before training."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.infrastructure.cleaning.duplicates import exact_duplicates
from tests.infrastructure.cleaning.made import split_of

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=30)


@given(TEXTS, TEXTS, st.integers(1, 3))
def test_every_document_is_there_once_afterwards(
    train: list[list[int]], validation: list[list[int]], pieces: int
) -> None:
    found = exact_duplicates(split_of(train, pieces=min(pieces, len(train))), split_of(validation))
    kept = [tuple(text) for text, keep in zip(train, found.keep_train, strict=True) if keep]
    held = [tuple(text) for text, keep in zip(validation, found.keep_validation, strict=True) if keep]
    assert max(Counter(kept + held).values()) == 1
    assert {*kept, *held} == {*map(tuple, train), *map(tuple, validation)}
    assert held == list(dict.fromkeys(map(tuple, validation)))
    assert kept == [text for text in dict.fromkeys(map(tuple, train)) if text not in held]
    assert found.across == sum(tuple(text) in held for text in train)
    assert found.removed == len(train) + len(validation) - len(kept) - len(held)
    both = {"train": train, "validation": validation}
    for (split, first), (other, copy) in found.examples:
        assert both[split][first] == both[other][copy]


@pytest.mark.parametrize("difference", [[1, 2, 3], [1, 2, 3, 4, 4], [1, 2, 4, 3], [0, 1, 2, 3, 4]])
def test_almost_equal_is_not_equal(difference: list[int]) -> None:
    found = exact_duplicates(split_of([[1, 2, 3, 4], difference]), split_of([[9]]))
    assert found.removed == 0
    assert found.examples == ()

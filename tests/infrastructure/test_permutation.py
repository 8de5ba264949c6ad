"""The shuffle without a table."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.infrastructure.permutation import permute


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_the_shuffle_is_a_bijection(n: int, key: int) -> None:
    places = permute(np.arange(n), n, np.full(n, key, dtype=np.uint64))
    assert np.array_equal(np.sort(places), np.arange(n))


def test_the_shuffle_is_fixed_for_ever_and_spreads() -> None:
    first = permute(np.arange(10), 10, np.full(10, 7, dtype=np.uint64))
    assert first.tolist() == [7, 1, 9, 0, 6, 3, 4, 5, 8, 2]
    n = 5000
    places = permute(np.arange(n), n, np.full(n, 1, dtype=np.uint64))
    assert abs(np.corrcoef(np.arange(n), places)[0, 1]) < 0.05
    assert np.abs(np.diff(places)).mean() > n / 4  # a third of n is what chance gives
    assert (places == permute(np.arange(n), n, np.full(n, 2, dtype=np.uint64))).mean() < 0.01


def test_large_corpora_need_no_table() -> None:
    n = 10**12
    places = permute(np.array([0, 1, n - 1]), n, np.zeros(3, dtype=np.uint64))
    assert len(set(places.tolist())) == 3
    assert (places < n).all()


def test_each_row_may_have_a_size_of_its_own() -> None:
    sizes = np.array([1, 2, 3, 4, 5, 16, 17, 1000, 2**40])
    key, index = np.arange(len(sizes), dtype=np.uint64), sizes - 1
    together = permute(index, sizes, key)
    alone = [int(permute(index[i : i + 1], int(sizes[i]), key[i : i + 1])[0]) for i in range(len(sizes))]
    assert together.tolist() == alone

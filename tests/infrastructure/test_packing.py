"""Rows of whole documents: nothing lost, nothing twice, little cut, and the plan of the paper."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.infrastructure import packing, pieces
from smallgpt.infrastructure.packing import Packed, best_fit_decreasing
from smallgpt.infrastructure.windows import NO_TARGET
from tests.infrastructure.streams import counting_documents, stream

END = 2**20


def one_by_one(lengths: list[int], T: int) -> list[list[int]]:
    """Best-fit decreasing as it is told: each piece into the fullest row with room."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        open_rows = [row for row in rows if sum(row) + length <= T]
        if not open_rows:
            rows.append([])
            open_rows = [rows[-1]]
        max(open_rows, key=sum).append(length)
    return rows


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.data(), st.integers(1, 24))
def test_the_plan_is_best_fit_decreasing(data: st.DataObject, T: int) -> None:
    lengths = data.draw(st.lists(st.integers(1, T), max_size=120))
    counts = [0] * (T + 1)
    for length in lengths:
        counts[length] += 1
    plan = best_fit_decreasing(counts)
    filled = [sum(length * each for length, each in pattern.pieces) for pattern in plan for _ in range(pattern.rows)]
    assert sorted(filled) == sorted(sum(row) for row in one_by_one(lengths, T))
    placed: Counter[int] = Counter()
    for pattern in plan:
        placed.update({length: pattern.rows * each for length, each in pattern.pieces})
    assert placed == Counter(lengths)


def test_a_plan_takes_no_longer_for_more_documents() -> None:
    few, many = ([0, *(scale * (1 + n % 7) for n in range(512))] for scale in (1, 10**9))
    assert len(best_fit_decreasing(many)) < 4 * len(best_fit_decreasing(few)) + 4 * 512


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=400),
    block_size=st.integers(2, 24),
    seed=st.integers(0, 2**31 - 1),
    at_once=st.sampled_from([3, 2**20]),
)
def test_every_token_is_a_target_once_an_epoch(lengths: list[int], block_size: int, seed: int, at_once: int) -> None:
    ids, starts = counting_documents(lengths, END)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_DOCUMENTS_AT_ONCE", at_once)
        patch.setattr(pieces, "_DOCUMENTS_AT_ONCE", 256)
        view = Packed(stream(ids), starts, end_of_text=END, block_size=block_size, seed=seed)
    n = view.windows
    epochs = [view.rows(np.arange(epoch * n, (epoch + 1) * n)) for epoch in range(2)]
    for inputs, targets in epochs:
        assert sorted(targets[targets != NO_TARGET].tolist()) == sorted(ids.tolist())
        assert (inputs[:, 0] == END).all()
        followed = np.where(targets[:, :-1] == NO_TARGET, END, targets[:, :-1])
        assert np.array_equal(inputs[:, 1:], followed)
        for row in targets:  # what is left empty is left at the end
            assert (row[(row != NO_TARGET).sum() :] == NO_TARGET).all()
        for x, y in zip(inputs.ravel().tolist(), targets.ravel().tolist(), strict=True):
            if y not in (END, NO_TARGET):  # ids count up through the corpus: what precedes is right or an end-of-text
                assert x in (y - 1, END)
        cut = sum(length + 1 > block_size for length in lengths)
        begun = int(((inputs == END) & (targets != NO_TARGET)).sum())
        pieces_in_all = sum(-(-(length + 1) // block_size) for length in lengths)
        assert begun == pieces_in_all if cut else begun == len(lengths)


def test_the_order_and_the_company_change_with_the_epoch_and_the_seed() -> None:
    ids, starts = counting_documents([3 + n % 9 for n in range(200)], END)
    a = Packed(stream(ids), starts, end_of_text=END, block_size=32, seed=1)
    b = Packed(stream(ids), starts, end_of_text=END, block_size=32, seed=2)
    n = a.windows
    rows = {tuple(row) for row in a.rows(np.arange(n))[1].tolist()}
    assert len(rows & {tuple(row) for row in a.rows(np.arange(n, 2 * n))[1].tolist()}) < n / 10
    assert len(rows & {tuple(row) for row in b.rows(np.arange(n))[1].tolist()}) < n / 10
    assert np.array_equal(a.rows(np.array([7, 3]))[1][1], a.rows(np.array([3]))[1][0])


def test_rows_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).lognormal(4.0, 0.8, 5000).astype(int).clip(1).tolist()
    ids, starts = counting_documents(lengths, END)
    view = Packed(stream(ids), starts, end_of_text=END, block_size=256, seed=0)
    assert len(ids) / (view.windows * 256) > 0.995

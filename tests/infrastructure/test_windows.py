"""What the model sees: pure functions of (seed, number), each epoch complete, the same for any number of processes."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.windows import NO_TARGET, Anywhere, Batches, FromDocuments, ShortThenFull
from tests.infrastructure.streams import counting_documents, stream

END = 2**20


def batches(tokens: int = 1000, *, block_size: int = 16, batch_size: int = 8, seed: int = 3) -> Batches:
    return Batches(Anywhere(stream(np.arange(tokens, dtype=np.uint16)), block_size=block_size, seed=seed), batch_size)


def test_the_order_of_windows_is_fixed_for_ever() -> None:
    view = Anywhere(stream(np.arange(1000, dtype=np.uint16)), block_size=16, seed=3)
    assert view.starts(np.arange(8)).tolist() == [167, 791, 407, 87, 7, 583, 39, 215]
    assert view.starts(np.arange(8000, 8008)).tolist() == [62, 334, 862, 494, 94, 942, 574, 878]
    late = Anywhere(stream(np.arange(40_000, dtype=np.uint16)), block_size=7, seed=2**31 - 1)
    assert late.starts(3 * 12345 + np.arange(3)).tolist() == [19015, 10622, 8410]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    tokens=st.integers(2, 400),
    block_size=st.integers(1, 30),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**31 - 1),
)
def test_an_epoch_visits_each_window_once(tokens: int, block_size: int, batch_size: int, seed: int) -> None:
    if tokens <= block_size:
        return
    view = Anywhere(stream(np.arange(tokens, dtype=np.uint16)), block_size=block_size, seed=seed)
    found = Batches(view, batch_size)
    n, T = view.windows, block_size
    steps = -(-2 * n // batch_size)
    pairs = [found.rows(step, range(batch_size)) for step in range(steps)]
    inputs, targets = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)  # tokens count up, so the next token is one more
    assert int(targets.max()) < tokens
    for epoch in range(2):
        starts = inputs[epoch * n : (epoch + 1) * n, 0]
        phase = int(starts.min())
        assert sorted(starts.tolist()) == [phase + T * window for window in range(n)]
        assert phase < T


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_any_number_of_processes_sees_the_same_stream(processes: int) -> None:
    found = batches()
    for step in (0, 5, 17):
        whole = found.rows(step, range(8))
        for rank in range(processes):
            x, y = found.rows(step, range(rank, 8, processes))
            assert torch.equal(x, whole[0][rank::processes])
            assert torch.equal(y, whole[1][rank::processes])


def test_batches_depend_on_seed_and_epoch_only() -> None:
    a, view = batches(), batches().view
    assert isinstance(view, Anywhere)
    later = a.rows(9, range(8))
    a.rows(0, range(8))
    assert torch.equal(a.rows(9, range(8))[0], later[0])
    assert not torch.equal(batches(seed=4).rows(9, range(8))[0], later[0])
    n = view.windows
    epochs = [Counter((a.rows(0, range(e * n, (e + 1) * n))[0][:, 0] % 16).tolist()) for e in range(20)]
    assert all(len(phases) == 1 for phases in epochs)
    assert len({next(iter(phases)) for phases in epochs}) > 5  # windows start elsewhere in every epoch


def test_too_few_tokens_for_a_block() -> None:
    with pytest.raises(DataError, match=r"16 training tokens .* block of 16 .* at most 15"):
        batches(16)
    x, y = batches(17, batch_size=1).rows(0, range(1))
    assert (int(x[0, 0]), int(y[0, -1])) == (0, 16)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=600),
    block_size=st.integers(1, 17),
    seed=st.integers(0, 2**31 - 1),
)
def test_windows_of_documents_begin_where_documents_do(lengths: list[int], block_size: int, seed: int) -> None:
    ids, begins = counting_documents(lengths, END)
    T = block_size
    view = FromDocuments(stream(ids), begins, end_of_text=END, block_size=T, seed=seed)
    wanted = [
        at + T * piece
        for at, length in zip(begins.tolist(), lengths, strict=True)
        for piece in range(-(-(length + 1) // T))
    ]
    assert view.windows == len(wanted)
    before = np.concatenate([[END], ids]).astype(np.int64)  # before[at] stands before ids[at]
    after = np.concatenate([ids, np.full(T, -1)]).astype(np.int64)
    for epoch in range(2):
        inputs, targets = view.rows(np.arange(epoch * len(wanted), (epoch + 1) * len(wanted)))
        starts = [int(np.flatnonzero(before[1:] == y)[0]) if y != END else None for y in targets[:, 0].tolist()]
        assert sorted(at for at in starts if at is not None) == [at for at in wanted if ids[at] != END]
        for at, x, y in zip(starts, inputs, targets, strict=True):
            if at is None:
                continue
            rest = after[at : at + T]
            assert y.tolist() == np.where(rest == -1, NO_TARGET, rest).tolist()
            assert x.tolist()[: min(T, len(ids) - at)] == before[at : min(at + T, len(ids))].tolist()
            assert set(x.tolist()[len(ids) - at :]) <= {END}


def test_damaged_starts_are_refused_before_any_row() -> None:
    ids, begins = counting_documents([5, 6, 7], END)
    for bad in ([0, 6, 6], [0, 13, 6], [0, 6, 900]):
        with pytest.raises(DataError, match=r"document \d starts at .*smallgpt prepare verify"):
            FromDocuments(stream(ids), np.array(bad), end_of_text=END, block_size=4, seed=0)
    del begins


def test_short_windows_come_first_and_keep_the_tokens_of_a_step() -> None:
    tokens = stream(np.arange(1000, dtype=np.uint16))
    short, full = (Anywhere(tokens, block_size=size, seed=0) for size in (4, 8))
    found = ShortThenFull(full, 4, short=short, short_steps=2)
    assert [found.rows(step, range(4))[0].shape for step in (0, 1, 2, 3)] == [(8, 4), (8, 4), (4, 8), (4, 8)]
    whole, parts = found.rows(1, range(4))[0], [found.rows(1, range(rank, 4, 2))[0] for rank in (0, 1)]
    assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, torch.cat(parts).tolist()))

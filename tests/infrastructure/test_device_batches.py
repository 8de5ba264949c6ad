"""Batches on their way to a device: the same tokens by every way. The ways themselves run on a CPU too."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.device_batches import Prefetched, Resident, batches_on
from smallgpt.infrastructure.windows import Anywhere, FromDocuments, ShortThenFull
from tests.infrastructure.streams import counting_documents, stream

CPU = torch.device("cpu")


def batches(dtype: type[np.unsignedinteger]) -> ShortThenFull:
    highest = np.iinfo(dtype).max if dtype is np.uint16 else 2**20
    tokens = np.random.default_rng(0).integers(0, highest, 5000, endpoint=True).astype(dtype)
    short, full = (Anywhere(stream(tokens, [1000]), block_size=size, seed=3) for size in (8, 16))
    return ShortThenFull(full, 6, short=short, short_steps=2)


@pytest.mark.parametrize("way", [Resident, Prefetched])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_every_way_gives_the_batches_of_the_files(
    way: type[Resident | Prefetched], dtype: type[np.unsignedinteger]
) -> None:
    source = batches(dtype)
    found = way(source, CPU)
    for step in (0, 1, 2, 3, 7, 4):  # short windows, full ones, and out of turn as after a resume
        for ready, wanted in zip(found.rows(step, range(6)), source.rows(step, range(6)), strict=True):
            assert ready.dtype == torch.int64
            assert torch.equal(ready, wanted)


def test_the_next_batch_is_read_while_a_step_runs() -> None:
    source = batches(np.uint16)
    found = Prefetched(source, CPU)
    found.rows(4, range(6))
    assert found.ahead is not None
    step, rows, reading = found.ahead
    assert (step, rows) == (5, range(6))
    assert isinstance(reading, Future)
    assert torch.equal(reading.result()[0], source.rows(5, range(6))[0])


def test_a_cpu_reads_from_the_map() -> None:
    source = batches(np.uint16)
    found, why = batches_on(CPU, source)
    assert found is source
    assert why.value == "mapped"


def test_a_damaged_id_is_found_before_tokens_are_made_resident() -> None:
    view = Anywhere(stream(np.arange(100, dtype=np.uint16), vocab_size=90), block_size=16, seed=0)
    with pytest.raises(DataError, match="token id 99 at position 99"):
        Resident(ShortThenFull(view, 2), CPU)


def test_rows_that_are_put_together_are_prefetched() -> None:
    ids, starts = counting_documents([9, 30, 4], 1000)
    view = FromDocuments(stream(ids), starts, end_of_text=1000, block_size=8, seed=0)
    found, why = batches_on(torch.device("cuda"), ShortThenFull(view, 2))
    assert isinstance(found, Prefetched)
    assert why.value == "prefetched"

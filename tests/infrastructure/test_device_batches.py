"""Batches on their way to a device: the same tokens by every way. The ways themselves run on a CPU too."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch

from smallgpt.infrastructure.device_batches import Prefetched, Resident, batches_on
from smallgpt.infrastructure.token_store import ShortThenFull

CPU = torch.device("cpu")


def batches(dtype: type[np.unsignedinteger]) -> ShortThenFull:
    highest = np.iinfo(dtype).max if dtype is np.uint16 else 2**20
    tokens = np.random.default_rng(0).integers(0, highest, 5000, endpoint=True).astype(dtype)
    return ShortThenFull(tokens, block_size=16, batch_size=6, seed=3, short_steps=2)


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

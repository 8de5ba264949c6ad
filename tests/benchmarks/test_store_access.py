"""Stores of gigabytes, made of holes: offsets past 2**31, ids of 32 bits, 1,000 shards, and what opening and a batch cost."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from smallgpt.infrastructure.mixture import training_view
from smallgpt.infrastructure.token_store import TokenStore, open_store
from tests.benchmarks.store_access import BLOCK, SHAPES, Shape, make_store, measure, smaller


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files may have holes."""
    probe = tmp_path / "probe"
    with probe.open("wb") as file:
        file.truncate(2**24)
    if probe.stat().st_blocks * 512 > 2**20:
        pytest.skip("this disk has no sparse files")
    yield tmp_path
    for path in tmp_path.rglob("*.bin"):
        path.unlink()


def write_at(store: TokenStore, position: int, ids: list[int]) -> None:
    """Put ids into the training stream's file or files."""
    folder = store.folders[0]
    for file in folder.facts("train").files:
        here = ids[max(0, -position) : max(0, file.tokens - position)]
        if here:
            with (folder.path / file.name).open("r+b") as out:
                out.seek(max(0, position) * folder.manifest.item_size)
                out.write(np.array(here, dtype=folder.manifest.dtype).tobytes())
        position -= file.tokens


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_positions_past_two_to_the_31_are_read_where_they_are(shape: Shape, place: Path) -> None:
    store = open_store(make_store(place / "data", shape, documents=shape.shards > 1))
    size = store.manifest.item_size
    places = [5, 2**31 // size + 3, shape.tokens - 400, *([2**31 + 11] if shape.tokens > 2**31 + 500 else [])]
    places += [shape.tokens // 1000 * 7 - 50] if shape.shards > 1 else []  # across the border of two shards
    highest = 2**16 if shape.dtype == "uint32" else 2**14
    written = {at: [(highest + at + i) % (2 * highest) for i in range(300)] for at in places}
    for at, ids in written.items():
        write_at(store, at, ids)
    tokens = store.tokens("train")
    assert tokens.nbytes > 2**31
    assert tokens.windows(np.array(places), 300).tolist() == list(written.values())
    for at, ids in written.items():
        assert tokens[at - 1 : at + 301].tolist() == [0, *ids, 0]
    for windows in ("anywhere", "documents", "packed") if shape.shards > 1 else ("anywhere",):
        view = training_view(store, (), windows, block_size=BLOCK, seed=1)
        inputs, targets = view.rows(10**12 + np.arange(64))
        assert inputs.shape == targets.shape == (64, BLOCK)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda shape: shape.name)
def test_starting_reads_no_tokens(shape: Shape, place: Path) -> None:
    """In a process of its own: what it holds of the token files, and the seconds, after a training view is made."""
    folder = make_store(place / "data", shape)
    code = f"""
import re, time
from pathlib import Path
from smallgpt.infrastructure.mixture import training_view
from smallgpt.infrastructure.token_store import open_store
def read(): return int(re.search(r"rchar: (\\d+)", Path("/proc/self/io").read_text())[1])
before, start = read(), time.process_time()
store = open_store(Path({str(folder)!r}))
training_view(store, (), "anywhere", block_size=256, seed=0)
seconds, called = time.process_time() - start, read() - before
maps = Path("/proc/self/smaps").read_text()
print(seconds, called, sum(name in maps for name in ("train.bin", "train-0")))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, read, mapped = out.split()
    assert float(seconds) < 0.2
    assert int(read) < 2**20  # the manifest
    assert mapped == "0"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_batch_costs_the_same_in_a_large_store(shape: Shape, place: Path) -> None:
    folders = [make_store(place / str(number), one) for number, one in enumerate((smaller(shape), shape))]
    # in turn, so that a slow moment of the machine meets both
    found = [[measure(folder, "anywhere", 300) for folder in folders] for _ in range(3)]
    costs = [min(row["batch_microseconds_mapped"] for row in rows) for rows in zip(*found, strict=True)]
    assert costs[1] < 2 * costs[0], costs

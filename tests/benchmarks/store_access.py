"""What a batch costs in stores of gigabytes (one file, more tokens than 2**31, 1,000 shards) and in ones of megabytes.

    python tests/benchmarks/store_access.py [--batches 300] [--json FILE]

The large files are sparse: they have their sizes and offsets, and take no room on the disk. The same batches are read twice,
each time through a new map: the first time the kernel makes their pages, the second time they are in its cache, as in a
run whose corpus fits into memory. What a disk adds is not measured. Times are processor time of this process.
Beside each store is one that is 1,024 times smaller: a power of four, so that the shuffle has as much to do (its network
permutes a power of four; the emptier that is, the more often a place falls outside and is permuted again).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from smallgpt.infrastructure.manifest import Manifest, SplitFacts, TokenFile, TokenizerFacts
from smallgpt.infrastructure.mixture import training_view
from smallgpt.infrastructure.provenance import provenance, record
from smallgpt.infrastructure.token_store import open_store

BATCH, BLOCK = 32, 256
DOCUMENT = 400
"""Mean tokens of a document."""


@dataclass(frozen=True)
class Shape:
    """A synthetic store."""

    name: str
    tokens: int
    dtype: Literal["uint16", "uint32"]
    shards: int


SHAPES = (
    Shape("2.2 GB", 11 * 10**8, "uint16", 1),
    Shape("4.5 GB, tokens past 2**31", 225 * 10**7, "uint16", 1),
    Shape("2.2 GB in 1,000 shards of uint32", 55 * 10**7, "uint32", 1000),
)


def smaller(shape: Shape) -> Shape:
    """The store to compare with."""
    return Shape(f"{shape.name} / 1024", shape.tokens // 1024, shape.dtype, 1)


def make_store(folder: Path, shape: Shape, *, documents: bool = False) -> Path:
    """A data folder of that shape, whose ids are 0 until a test writes others."""
    folder.mkdir()
    names = ["train.bin"] if shape.shards == 1 else [f"train-{number:05}.bin" for number in range(shape.shards)]
    sizes = [shape.tokens // shape.shards] * (shape.shards - 1)
    sizes.append(shape.tokens - sum(sizes))
    splits: dict[Literal["train", "validation"], SplitFacts] = {
        "train": _sparse(folder, names, sizes, shape.dtype),
        "validation": _sparse(folder, ["validation.bin"], [10_000], shape.dtype),
    }
    if documents:
        lengths = np.random.default_rng(0).exponential(DOCUMENT, 2 * shape.tokens // DOCUMENT).astype(np.int64) + 2
        starts = np.concatenate([[0], np.cumsum(lengths)])
        starts = starts[starts < shape.tokens]
        np.save(folder / "train.starts.npy", starts)
        facts = {"starts": "train.starts.npy", "documents": len(starts)}
        splits["train"] = splits["train"].model_copy(update=facts)
    Manifest(
        dtype=shape.dtype,
        vocab_size=2**17 if shape.dtype == "uint32" else 2**15,
        tokenizer=TokenizerFacts(kind="bpe", fingerprint="0" * 64, end_of_text=7, vocab_size=2**15),
        source="synthetic",
        splits=splits,
        baselines=None,
    ).save(folder)
    return folder


def _sparse(folder: Path, names: Sequence[str], sizes: Sequence[int], dtype: str) -> SplitFacts:
    for name, size in zip(names, sizes, strict=True):
        with (folder / name).open("wb") as file:
            file.truncate(size * np.dtype(dtype).itemsize)
    files = tuple(TokenFile(name=name, tokens=size, sha256="0" * 64) for name, size in zip(names, sizes, strict=True))
    return SplitFacts(
        files=files,
        tokens=sum(sizes),
        sha256="0" * 64,
        highest_id=0,
        documents=None,
        starts=None,
        text_bytes=None,
        longest_document=None,
    )


def measure(folder: Path, windows: Literal["anywhere", "documents", "packed"], batches: int) -> dict[str, Any]:
    """Opening, planning, and the batches of a run that begins in the folder."""
    found: dict[str, Any] = {"windows": windows}
    for pages in ("new", "cached"):
        store, opening = _timed(partial(open_store, folder))
        view, planning = _timed(partial(training_view, store, (), windows, block_size=BLOCK, seed=0))
        times = [_timed(partial(view.rows, step * BATCH + np.arange(BATCH)))[1] for step in range(batches)]
        found |= {"open_milliseconds": 1e3 * opening, "plan_milliseconds": 1e3 * planning}
        found[f"batch_microseconds_{pages}_pages"] = 1e6 * median(times)
    # the same batches once more, when every file and page of them is mapped: what a long run sees
    times = [_timed(partial(view.rows, step * BATCH + np.arange(BATCH)))[1] for step in range(batches)]
    return found | {"batch_microseconds_mapped": 1e6 * median(times)}


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = action()
    return result, time.process_time() - start


def figures(place: Path, batches: int, *, documents: bool) -> list[Mapping[str, Any]]:
    """A row for each store and kind of window."""
    rows: list[Mapping[str, Any]] = []
    for number, shape in enumerate(one for large in SHAPES for one in (smaller(large), large)):
        folder = make_store(place / f"store-{number}", shape, documents=documents)
        for windows in ("anywhere", "documents", "packed") if documents else ("anywhere",):
            rows.append({"store": shape.name, **measure(folder, windows, batches)})
            print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for what, words in provenance().items():
        print(f"{what:10} {words}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as place:
        rows = figures(Path(place), arguments.batches, documents=True)
    text = json.dumps(record({"batch": BATCH, "block": BLOCK, "batches": arguments.batches}, rows), indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

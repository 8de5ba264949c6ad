"""Tokenizing a corpus: `smallgpt prepare` beside the usual recipe, from the same Parquet files to the same bytes.

    python tests/benchmarks/prepare_speed.py FOLDER [--megabytes 50] [--rounds 3] [--json FILE]

FOLDER is a dataset in hub layout with train and validation; its training rows are repeated to that size. The recipe is
what nanoGPT and others do: `datasets.map` with tiktoken's `encode_ordinary` in two processes, then a loop that writes a
memory map in 1,024 pieces. It counts no n-gram lines, so `prepare` is timed without them too. All are whole processes,
imports included, with empty caches, in turn, on the same cores. Memory is the largest sum of the proportional sets (Pss)
of a process and its children, read 20 times a second in a further round, since reading it holds them up.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from smallgpt.infrastructure.provenance import record

RECIPE = """
import sys
import numpy as np
import tiktoken
from datasets import load_dataset

source, out = sys.argv[1:]
encoding = tiktoken.get_encoding("gpt2")

def process(example):
    ids = encoding.encode_ordinary(example["text"])
    ids.append(encoding.eot_token)
    return {"ids": ids, "len": len(ids)}

if __name__ == "__main__":
    tokenized = load_dataset(source).map(process, remove_columns=["text"], num_proc=2)
    for split, rows in tokenized.items():
        total = np.sum(rows["len"], dtype=np.uint64)
        stream = np.memmap(f"{out}/{split}.bin", dtype=np.uint16, mode="w+", shape=(int(total),))
        pieces, at = min(1024, len(rows)), 0
        for piece in range(pieces):
            batch = rows.shard(num_shards=pieces, index=piece, contiguous=True).with_format("numpy")
            ids = np.concatenate(batch["ids"])
            stream[at : at + len(ids)] = ids
            at += len(ids)
        stream.flush()
"""


def repeated(folder: Path, megabytes: float, out: Path) -> int:
    """Write the dataset with its training rows repeated; bytes of training text."""
    (out / "data").mkdir(parents=True)
    sizes = {}
    for split in ("train", "validation"):
        files = sorted((folder / "data").glob(f"{split}-*.parquet"))
        texts = [text for file in files for text in pyarrow.parquet.read_table(file)["text"].to_pylist()]
        size = sum(len(text.encode()) for text in texts)
        times = max(1, round(megabytes * 1e6 / size)) if split == "train" else 1
        table = pyarrow.table({"text": texts * times})
        pyarrow.parquet.write_table(table, out / "data" / f"{split}-00000-of-00001.parquet", row_group_size=1000)
        sizes[split] = size * times
    return sizes["train"]


def measured(command: list[str], environment: Mapping[str, str], *, watched: bool) -> tuple[float, int]:
    """Seconds of a process with its children, and their peak bytes where it is watched."""
    os.sync()  # what the one before has written is not for this one to wait for
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak = 0
    while watched and process.poll() is None:
        peak = max(peak, sum(map(proportional_set, family(process.pid))))
        time.sleep(0.05)
    process.wait()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{command[:3]} ended with exit code {process.returncode}")
    return seconds, peak


def family(process: int) -> list[int]:
    """A process and all its descendants."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(each for child in children for each in family(int(child)))]


def proportional_set(process: int) -> int:
    """Bytes in memory, those shared with others divided by their number."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "corpus")
        size = repeated(arguments.folder, arguments.megabytes, source)
        for turn in range(arguments.rounds + 1):
            watched = turn == arguments.rounds
            recipe, plain, ours = (Path(place, f"{name}-{turn}") for name in ("recipe", "plain", "ours"))
            recipe.mkdir()
            caches = {"HF_HOME": str(Path(place, f"cache-{turn}"))}
            prepare = [
                *(sys.executable, "-m", "smallgpt", "prepare", "hub", str(source)),
                *("--tokenizer", "gpt2", "--out"),
            ]
            commands = {
                "datasets.map and a memmap loop": [sys.executable, "-c", RECIPE, str(source), str(recipe)],
                "smallgpt prepare --no-baselines": [*prepare, str(plain), "--no-baselines"],
                "smallgpt prepare": [*prepare, str(ours)],
            }
            for system, command in commands.items():
                reading = measured(command, caches, watched=watched)
                print(f"{system}: {reading[0]:.1f} s, {reading[1] / 1e6:.0f} MB", file=sys.stderr)
                if watched:
                    peaks[system] = reading[1]
                else:
                    seconds[system].append(reading[0])
            for split in ("train", "validation"):
                expected = (recipe / f"{split}.bin").read_bytes()
                if any((folder / f"{split}.bin").read_bytes() != expected for folder in (plain, ours)):
                    raise SystemExit(f"{split}.bin differs")
        tokens = (ours / "train.bin").stat().st_size // 2
    figures = record({"text_bytes": size, "tokens": tokens}, rows(seconds, peaks, size, tokens))
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def rows(seconds: Mapping[str, list[float]], peaks: Mapping[str, int], size: int, tokens: int) -> list[dict[str, Any]]:
    """Medians, spread and the ratio to the first system."""
    medians = {system: statistics.median(each) for system, each in seconds.items()}
    first = next(iter(medians.values()))
    return [
        {
            "system": system,
            "seconds": median,
            "seconds_slowest": max(seconds[system]),
            "seconds_fastest": min(seconds[system]),
            "megabytes_per_second": size / 1e6 / median,
            "tokens_per_second": tokens / median,
            "peak_memory_bytes": peaks[system],
            "speed_ratio": first / median,
        }
        for system, median in medians.items()
    ]


if __name__ == "__main__":
    main()

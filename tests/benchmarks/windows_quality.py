"""Does it pay to begin rows where documents begin, or to pack them? Bits per byte after the same number of tokens.

    python tests/benchmarks/windows_quality.py DATA_FOLDER [--steps 400] [--seeds 2] [--kinds KIND ...] [--json FILE]

DATA_FOLDER is what `smallgpt prepare` made. Each kind of window trains a small model (two layers, 128 wide, block 256, batch 8,
otherwise the preset tinystories-cpu) through the command line, with as many steps as make the same number of predicted
tokens. Two scores of the whole validation split: as one stream in blocks, as everywhere else; and from document starts on,
in packed rows, which is nearer to how a model is asked to write.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smallgpt.application.evaluation import evaluate
from smallgpt.infrastructure.mixture import training_view
from smallgpt.infrastructure.packing import Packed
from smallgpt.infrastructure.provenance import provenance, record
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.token_store import TokenStore, open_store
from smallgpt.infrastructure.windows import NO_TARGET
from smallgpt.interfaces.opening import open_model

BLOCK, BATCH = 256, 8
FLAGS = [
    *(f"--model.block-size={BLOCK}", f"--training.batch-size={BATCH}", "--model.n-layer=2", "--model.n-embd=128"),
    *("--model.n-head=4", "--training.short-windows=0", "--training.threads=1", "--training.compile=off"),
    *("--evaluation.every=0", "--evaluation.sample-every=0", "--checkpoint.every=0"),
]
KINDS = ("anywhere", "documents", "packed")


def train(data: Path, windows: str, steps: int, seed: int) -> dict[str, Any]:
    """One run, and its scores."""
    store = open_store(data)
    view = training_view(store, (), windows, block_size=BLOCK, seed=seed)  # type: ignore[arg-type]
    predicted = float((view.rows(np.arange(1000))[1] != NO_TARGET).mean())
    needed = round(steps / predicted)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "smallgpt", "train", "tinystories-cpu", "--data", str(data), "--out", str(run)]
        flags = [f"--data.windows={windows}", f"--training.max-steps={needed}", f"--training.seed={seed}"]
        start = time.perf_counter()
        subprocess.run([*command, *FLAGS, *flags], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        events = RunFolder(run).metrics()
        model = open_model(run).model
    final = next(event for event in events if event["event"] == "validation" and event["final"])
    return {
        "windows": windows,
        "seed": seed,
        "steps": needed,
        "tokens": [event for event in events if event["event"] == "train"][-1]["tokens"],
        "seconds": seconds,
        "bits_per_byte": final["bits_per_byte"],
        "bits_per_byte_from_starts": evaluate(model, from_starts(store), store.text_bytes("validation")).bits_per_byte,
    }


def from_starts(store: TokenStore) -> Iterator[tuple[Tensor, Tensor]]:
    """The validation split in packed rows: every token is predicted once, in a document that is seen from its start."""
    assert store.end_of_text is not None
    tokens, starts = store.tokens("validation"), store.folders[0].starts("validation")
    view = Packed(tokens, starts, end_of_text=store.end_of_text, block_size=BLOCK, seed=0)
    for low in range(0, view.windows, 32):
        inputs, targets = view.rows(np.arange(low, min(low + 32, view.windows)))
        yield torch.from_numpy(inputs), torch.from_numpy(targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for what, words in provenance().items():
        print(f"{what:10} {words}", file=sys.stderr)
    torch.set_num_threads(1)
    rows = []
    for seed in range(1, arguments.seeds + 1):
        for windows in arguments.kinds:
            rows.append(train(arguments.data, windows, arguments.steps, seed))
            print(rows[-1], file=sys.stderr)
    settings = {"block": BLOCK, "batch": BATCH, "flags": FLAGS}
    text = json.dumps(record(settings, rows), indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

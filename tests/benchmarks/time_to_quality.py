"""Bits per byte after the same minutes: a shipped preset beside a plain baseline, one after the other on this machine.

    python tests/benchmarks/time_to_quality.py DATA_FOLDER [--preset tinystories-cpu] [--minutes 3] [--no-plain] [--json FILE]

DATA_FOLDER is what `smallgpt prepare` made. The baseline is what one writes without this package: 4 layers, 256 wide,
block 128, batch 16, AdamW with a cosine to a tenth, bf16 autocast where the processor has it, SDPA, full logits; it gets
the best of three learning rates. Each system trains for the same wall-clock time, and is scored on the whole validation split.
The preset also tells when it passed the seed's final result, as far as its evaluations in the loop show it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from smallgpt.domain.config import GPTConfig, ScheduleConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.schedule import build_scheduler
from smallgpt.infrastructure.devices import DTYPES, choose_precision, choose_threads
from smallgpt.infrastructure.provenance import provenance, record
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.token_store import open_store
from smallgpt.infrastructure.windows import Anywhere, Batches
from smallgpt.interfaces.looking import evaluate_split

LEARNING_RATES = (2e-3, 4e-3, 6e-3)
BATCH, BLOCK = 16, 128
SEED_BITS_PER_BYTE = 1.73
"""What the hobby project that this one re-creates ends with: 4.84 nats per GPT-2 token of TinyStories."""


def train_plain(data: Path, learning_rate: float, seconds: float) -> dict[str, Any]:
    """The baseline at one learning rate: steps are timed, then as many are done as fit."""
    store = open_store(data)
    torch.manual_seed(0)
    torch.set_num_threads(int(choose_threads(None).value))
    dtype = DTYPES[choose_precision(torch.device("cpu"), "auto").value]
    vocab_size = -(-store.vocab_size // 64) * 64
    model = GPT(GPTConfig(block_size=BLOCK, vocab_size=vocab_size, n_layer=4, n_head=4, n_embd=256, dropout=0.0))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = Batches(Anywhere(store.tokens("train"), block_size=BLOCK, seed=0), BATCH)
    start = time.perf_counter()

    def run(steps: int) -> None:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        scheduler = build_scheduler(optimizer, ScheduleConfig(name="cosine", warmup=0.02, floor=0.1), steps)
        for step in range(steps):
            inputs, targets = batches.rows(step, range(BATCH))
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits = model(inputs)
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)

    run(2)
    timed = time.perf_counter()
    run(10)
    a_step = (time.perf_counter() - timed) / 10
    model.load_state_dict(weights)
    steps = max(1, int((seconds - (time.perf_counter() - start)) / a_step))
    run(steps)
    elapsed = time.perf_counter() - start
    score = evaluate_split(model, store, "validation")
    return {
        "system": f"plain lr {learning_rate:g}",
        "bits_per_byte": score.bits_per_byte,
        "nats_per_token": score.nats_per_token,
        "steps": steps,
        "tokens": steps * BATCH * BLOCK,
        "seconds": elapsed,
    }


def train_preset(data: Path, preset: str, seconds: float) -> dict[str, Any]:
    """The preset through the command line, as a user would."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "smallgpt", "train", preset, "--data", str(data), "--out", str(run)]
        subprocess.run([*command, f"--training.max-minutes={seconds / 60}"], check=True, stdout=sys.stderr)
        events = RunFolder(run).metrics()
    final = next(e for e in events if e["event"] == "validation" and e["final"])
    last = [e for e in events if e["event"] == "train"][-1]
    end = next(e for e in events if e["event"] == "end")
    return {
        "system": preset,
        "bits_per_byte": final["bits_per_byte"],
        "bits_per_byte_interval": final.get("bits_per_byte_interval"),
        "nats_per_token": final["nats_per_token"],
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": end["seconds"],
        "passed_seed_seconds": seconds_to(events, SEED_BITS_PER_BYTE),
    }


def seconds_to(events: Sequence[Mapping[str, Any]], bits_per_byte: float) -> float | None:
    """Training time after the step at which an evaluation in the loop first found that few; None if none did.

    It scores the first `evaluation.max_tokens` of the validation split, and its own time comes after the step's.
    """
    seconds = {event["step"]: event["seconds"] for event in events if event["event"] == "train"}
    looks = [event for event in events if event["event"] == "validation" and not event["final"] and event["step"] > 0]
    passed = [seconds[look["step"]] for look in looks if (look["bits_per_byte"] or inf) <= bits_per_byte]
    return min(passed, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="tinystories-cpu")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--no-plain", action="store_true", help="the preset alone")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes
    for what, words in provenance().items():
        print(f"{what:10} {words}", file=sys.stderr)
    rows = [train_preset(arguments.data, arguments.preset, seconds)]
    for learning_rate in () if arguments.no_plain else LEARNING_RATES:
        rows.append(train_plain(arguments.data, learning_rate, seconds))
        print(rows[-1], file=sys.stderr)
    if len(rows) > 1:
        rows[0]["below_plain"] = min(row["bits_per_byte"] for row in rows[1:]) - rows[0]["bits_per_byte"]
    settings = {"preset": arguments.preset, "minutes": arguments.minutes}
    text = json.dumps(record(settings, rows), indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

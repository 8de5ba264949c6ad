"""Too little memory, for real: a process that may not take more addresses, and a micro-batch chosen to fit it."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from smallgpt.infrastructure import devices

# Imports first: what is left after them is what the run may take.
SHORT_OF_MEMORY = """
import resource, sys
from smallgpt.infrastructure import hardware
from smallgpt.interfaces import composition
from smallgpt.interfaces.cli import display, main
limit = hardware.address_space() + {megabytes} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main()
"""
SHAPE = ["--model.n-layer=2", "--model.n-embd=64", "--model.block-size=32", "--training.batch-size=8192"]
PLAIN = ["--kernels.backend=torch", "--training.precision=fp32", "--training.device=cpu", "--training.threads=1"]
SHORT = ["--training.max-steps=1", "--schedule.warmup=0", "--evaluation.sample-every=0", "--evaluation.every=0"]


def train_with(megabytes: int, *words: str) -> "subprocess.CompletedProcess[str]":
    code = SHORT_OF_MEMORY.format(megabytes=megabytes)
    command = [sys.executable, "-c", code, "train", "--data", "data", *SHAPE, *PLAIN, *SHORT, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits on addresses work on Linux only")
def test_a_shortage_ends_with_two_lines_whose_flags_fit(here: Path) -> None:
    short = train_with(1200, "--out=runs/short")
    assert short.returncode == 6, short.stderr
    first, second = short.stderr.strip().splitlines()[-2:]
    assert re.fullmatch(
        r"smallgpt: out of memory: tried to allocate \d+ B; the plan needs [\d.]+ GB, [\d.]+ [GM]B were available\.",
        first,
    )
    flag = re.match(r"These fit: (--training\.micro-batch \d+)(, or |\.$)", second)
    assert flag is not None, second
    assert "the plan needs" in short.stdout, "it was warned of before the start"

    again = train_with(1200, "--out=runs/again", *flag[1].split())
    assert again.returncode == 0, again.stderr
    auto = train_with(1200, "--out=runs/auto", "--training.micro-batch=auto")
    assert auto.returncode == 0, auto.stderr
    chosen = tomllib.loads(Path("runs/auto/config.toml").read_text())["training"]["micro_batch"]
    assert f"micro batch: {chosen}: the largest that fits: " in auto.stdout
    assert 1 < chosen < 8192


def events(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_auto_is_a_number_to_a_resumed_run_whatever_is_free_then(
    here: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other micro-batches round otherwise: the recorded number keeps the resumed run to the bits of the whole one."""
    words = ["train", "--data", "data", *SHAPE[:-1], *PLAIN, "--training.batch-size=64", "--training.micro-batch=auto"]
    words += ["--checkpoint.every=2", "--training.activation-checkpointing", "--schedule.name=constant"]
    words += ["--schedule.warmup=0", "--evaluation.sample-every=0"]
    monkeypatch.setattr(devices, "memory_available", lambda device: 10**12)
    assert run(*words, "--out=runs/roomy", "--training.max-steps=4").code == 0
    roomy = tomllib.loads(Path("runs/roomy/config.toml").read_text())["training"]
    assert roomy["micro_batch"] == 64
    peak = sum(events("runs/roomy")[0]["memory_plan"].values())
    monkeypatch.setattr(devices, "memory_available", lambda device: peak)
    assert run(*words, "--out=runs/whole", "--training.max-steps=4").code == 0
    assert run(*words, "--out=runs/parts", "--training.max-steps=2").code == 0
    chosen = tomllib.loads(Path("runs/parts/config.toml").read_text())["training"]
    assert chosen["micro_batch"] < 64
    assert chosen["activation_checkpointing"] is True

    monkeypatch.setattr(devices, "memory_available", lambda device: 10**12)
    assert run("train", "--resume=runs/parts", "--training.max-steps=4").code == 0
    losses = [[e["loss"] for e in events(f"runs/{name}") if e["event"] == "train"] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_the_record_holds_the_plan_and_the_measured_peak(here: Path, run: Any, tiny_flags: list[str]) -> None:
    ended = run("train", "--data", "data", *tiny_flags, "--out=runs/noted", "--training.max-steps=2")
    start, end = events("runs/noted")[0], events("runs/noted")[-1]
    assert {"weights", "gradients", "optimizer", "batch"} & set(start["memory_plan"]) >= {"weights", "optimizer"}
    assert all(size > 0 for size in start["memory_plan"].values())
    assert start["memory_before"] > 0
    assert end["memory_bytes"] > 0
    assert re.search(r"^memory   [\d.]+ [kMG]B planned, ", ended.out, re.MULTILINE)
    assert re.search(r"^memory   [\d.]+ [kMG]B planned; the process grew by [\d.]+ ", ended.out, re.MULTILINE)

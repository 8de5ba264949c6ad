"""Where a command's seconds go: they are booked, printed and few, and no file is read twice."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smallgpt.infrastructure import tokens
from smallgpt.infrastructure.tokenizers import load_tokenizer
from smallgpt.interfaces.phases import Phases, begin_command, in_words, process_age
from tests.interfaces.conftest import leave

TINY = ["--model.n-layer=1", "--model.n-head=2", "--model.n-embd=32", "--model.block-size=32"]
TINY += ["--training.batch-size=4", "--training.threads=1", "--evaluation.sample-tokens=4"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    stories = "\n<|endoftext|>\n".join(f"Once Tom had {n} hats and {n * 3} kites." for n in range(150))
    (tmp_path / "stories.txt").write_text(stories, encoding="utf-8")
    words = ["prepare", "text", str(tmp_path / "stories.txt"), "--tokenizer", "bytes", "--out", str(tmp_path / "data")]
    assert leave(*words) == 0
    return tmp_path / "data"


def test_every_second_is_booked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([10.0, 12.0, 12.5, 15.5])
    clock_of_numbers = SimpleNamespace(perf_counter=lambda: next(readings))
    monkeypatch.setattr("smallgpt.interfaces.phases.time", clock_of_numbers)
    clock = Phases()
    for phase in ("imports", "data", "imports"):
        clock.end(phase)
    assert clock.seconds == {"imports": 5.0, "data": 0.5}
    assert in_words(clock.seconds) == "5.5 s: imports 5.0, data 0.5"


def test_a_command_is_timed_from_its_own_start() -> None:
    begin_command(seconds_ago=100.0)
    clock = Phases.of_command()
    clock.end("imports")
    assert 100 <= clock.seconds["imports"] < 101


def test_the_age_of_a_process_is_known() -> None:
    code = "import time; time.sleep(0.2); from smallgpt.interfaces.phases import process_age; print(process_age())"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.15 < float(done.stdout) <= time.monotonic() - started + 0.05  # /proc counts in hundredths
    assert process_age() > 0


def test_a_run_records_and_shows_its_start(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = data.parent / "run"
    assert leave("train", "--data", str(data), "--out", str(out), "--training.max-steps=2", *TINY) == 0
    start = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert list(start["startup_seconds"]) == ["imports", "data", "kernels", "model", "ceiling", "optimizer"]
    assert f"start    {in_words(start['startup_seconds'])}" in capsys.readouterr().out


def test_a_planned_and_a_resumed_run_name_what_they_did_besides(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = data.parent / "run"
    assert leave("train", "--data", str(data), "--out", str(out), "--training.max-minutes=0.01", *TINY) == 0
    assert "; timed for " in capsys.readouterr().out
    plan = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert plan["seconds"] > 0
    steps = str(plan["steps"] + 1)
    assert leave("train", "--resume", str(out), "--training.max-steps", steps) == 0
    starts = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "checkpoint" in [e for e in starts if e["event"] == "start"][-1]["startup_seconds"]


def test_prepare_and_evaluate_end_with_their_phases(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story, out = str(data.parent / "stories.txt"), data.parent / "run"
    assert leave("prepare", "text", story, "--tokenizer", "bytes", "--out", str(data.parent / "again")) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("time  ")
    assert "counting n-gram baselines" in last
    assert leave("train", "--data", str(data), "--out", str(out), "--training.max-steps=2", *TINY) == 0
    capsys.readouterr()
    assert leave("evaluate", str(out), "--json") == 0
    shown = capsys.readouterr()
    assert "nats_per_token" in json.loads(shown.out)
    last = shown.err.splitlines()[-1]
    assert last.startswith("time  ")
    assert [part.split()[0] for part in last.split(": ", 1)[1].split(", ")] == ["imports", "model", "data", "scoring"]
    assert leave("evaluate", str(out), "--text", story) == 0
    assert "data 0." in capsys.readouterr().err


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each token file was mapped and a tokenizer.json loaded."""
    counts: Counter[str] = Counter()
    mapped = tokens.mapped

    def counted(path: Path, dtype: str) -> tokens.Ids:
        counts[path.name] += 1
        return mapped(path, dtype)

    def loaded(path: Path) -> Any:
        counts["tokenizers"] += 1
        return load_tokenizer(path)

    monkeypatch.setattr("smallgpt.infrastructure.tokens.mapped", counted)
    monkeypatch.setattr("smallgpt.infrastructure.token_store.load_tokenizer", loaded)
    return counts


def test_a_run_opens_its_files_once(data: Path, reads: Counter[str]) -> None:
    out = data.parent / "run"
    assert leave("train", "--data", str(data), "--out", str(out), "--training.max-steps=2", *TINY) == 0
    assert reads["tokenizers"] == reads["train.bin"] == 1
    reads.clear()
    assert leave("evaluate", str(out)) == 0
    assert reads == {"validation.bin": 1}


TO_THE_FIRST_STEP = """
import sys, time
from smallgpt.application import step
from smallgpt.interfaces.cli import main

def first(self, number, batches):
    print("CPU seconds", time.process_time())
    sys.exit(0)

step.Stepper.__call__ = first
main(["train", "demo", "--training.threads", "1"])
"""


@pytest.mark.slow
def test_the_demo_starts_within_five_seconds(tmp_path: Path) -> None:
    """CPU time, not wall-clock time: how long a process waits for a busy machine's cores or disk is not its doing.

    One thread, so that the two are the same on a machine with nothing else to do. The first run warms the disk's cache.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    prepare = [sys.executable, "-m", "smallgpt", "prepare", "demo"]
    subprocess.run(prepare, cwd=tmp_path, check=True, capture_output=True, env=environment)
    seconds = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", TO_THE_FIRST_STEP], cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("CPU seconds")]
        seconds.append(float(line.split()[-1]))
    assert min(seconds) < 5.0

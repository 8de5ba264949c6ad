"""Signals, kills, second processes and readers that leave, at real processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smallgpt.infrastructure.run_folder import RunFolder

Run = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]

PATIENCE = 60.0  # seconds; a busy machine imports torch slowly


def wait_for(ready: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Until it is ready; a process that ends before has failed."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_done(run: str) -> int:
    try:
        return RunFolder(Path(run)).metrics_file.read_text().count('"event": "train"')
    except FileNotFoundError:
        return 0


def losses(run: str) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in RunFolder(Path(run)).metrics() if event["event"] == "train"]


def weights(run: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(RunFolder(Path(run)).checkpoints()[-1] / "model.safetensors")
    return tensors


@pytest.fixture
def long_run(tiny_flags: list[str]) -> list[str]:
    """Steps of a millisecond, more of them than anybody waits for; a checkpoint now and then."""
    length = ["--training.max-steps=200000", "--schedule.warmup=10", "--checkpoint.every=40", "--evaluation.every=0"]
    return ["train", "--data", "data", "--out", "runs/long", *tiny_flags, *length]


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(
    here: Path, run: Run, start: Start, tiny_flags: list[str], number: signal.Signals, code: int
) -> None:
    whole = ["train", "--data", "data", *tiny_flags, "--training.max-steps=300", "--training.label-smoothing=0.1"]
    slowed = [*whole, "--out", "runs/cut", "--evaluation.every=10"]
    process = start(*slowed)
    wait_for(lambda: steps_done("runs/cut") >= 5, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (code, "")
    done = steps_done("runs/cut")
    assert 5 <= done < 300
    assert f"stopped after step {done} and saved; go on with\n  smallgpt train --resume runs/cut\n" in out
    assert RunFolder(Path("runs/cut")).checkpoints()[-1].name == f"step-{done:08d}"

    assert run("train", "--resume", "runs/cut").code == 0
    assert run(*whole, "--out", "runs/whole", "--evaluation.every=10").code == 0
    assert losses("runs/cut") == losses("runs/whole")
    for name, tensor in weights("runs/whole").items():
        assert torch.equal(weights("runs/cut")[name], tensor), name


def test_a_kill_loses_no_more_than_since_the_last_checkpoint(
    here: Path, run: Run, start: Start, long_run: list[str]
) -> None:
    process = start(*long_run)
    wait_for(lambda: steps_done("runs/long") > 45, process)
    busy = run("train", "--resume", "runs/long")  # by a second process, while the first one works
    assert busy.code == 4
    assert f"runs/long is in use by process {process.pid} on " in busy.err
    process.kill()
    process.wait()
    saved = int(RunFolder(Path("runs/long")).checkpoints()[-1].name[5:])
    assert saved >= 40

    # what a kill in the middle of a save leaves: a folder under another name, a line cut short
    (Path("runs/long/checkpoints") / ".step-00999999.1.tmp").mkdir()
    with Path("runs/long/metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "st')
    ended = run("train", "--resume", "runs/long", f"--training.max-steps={saved + 5}")
    assert ended.code == 0
    assert f"resumed  from step {saved:,}" in ended.out
    assert [step for step, _ in losses("runs/long")] == list(range(1, saved + 6))
    for line in Path("runs/long/metrics.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.slow
def test_kills_while_checkpoints_are_written_beside_training_change_no_number(
    here: Path, run: Run, start: Start, tiny_flags: list[str]
) -> None:
    words = [word for word in tiny_flags if "n-embd" not in word]
    length = ["--training.max-steps=60", "--checkpoint.every=3", "--evaluation.max-tokens=1000"]
    whole = ["train", "--data", "data", *words, "--model.n-embd=128", *length]
    command = [*whole, "--out", "runs/cut", "--checkpoint.asynchronous"]
    moments = random.Random(3)
    drafts = Path("runs/cut/checkpoints")
    for goal in (8, 22, 36):
        process = start(*command)
        wait_for(partial(lambda goal: steps_done("runs/cut") > goal and any(drafts.glob(".step-*")), goal), process)
        time.sleep(moments.uniform(0.0, 0.02))
        process.kill()
        process.communicate()
        command = ["train", "--resume", "runs/cut"]
    done = run(*command)
    assert done.code == 0
    assert "resumed  from step" in done.out
    assert run(*whole, "--out", "runs/whole").code == 0
    assert losses("runs/cut") == losses("runs/whole")
    for name, tensor in weights("runs/whole").items():
        assert torch.equal(weights("runs/cut")[name], tensor), name
    saved = [event["path"] for event in RunFolder(Path("runs/cut")).metrics() if event["event"] == "checkpoint"]
    assert saved[-1] == "runs/cut/checkpoints/step-00000060"


def test_a_second_signal_ends_at_once(here: Path, start: Start, long_run: list[str]) -> None:
    # one step of many seconds: the first signal waits for its end, the second one does not
    words = [word for word in long_run if "batch-size" not in word]
    process = start(*words, "--training.batch-size=200000", "--training.micro-batch=16")
    wait_for(lambda: read_line(process).startswith("compare"), process)
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err == "smallgpt: interrupted\n"
    assert time.monotonic() - began < 5


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, "hung up", marks=pytest.mark.slow),
    ],
)
def test_preparation_that_is_cut_off_leaves_nothing(
    here: Path, start: Start, number: signal.Signals, code: int, said: str
) -> None:
    pick = random.Random(0).choice
    syllables = ["ka", "lo", "mi", "tu", "re", "so", "na", "pe"]
    words = ["".join(pick(syllables) for _ in range(4)) for _ in range(3000)]
    Path("x.txt").write_text("\n".join(" ".join(pick(words) for _ in range(40)) for _ in range(20_000)))
    before = sorted(here.rglob("*"))
    process = start("prepare", "text", "x.txt", "--separator", "", "--out", "new", "--vocab-size", "4000")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("reading for the tokenizer")
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-1] == f"smallgpt: {said}"
    assert sorted(here.rglob("*")) == before


def test_a_run_whose_reader_leaves_goes_on_to_its_end(here: Path, start: Start, tiny_flags: list[str]) -> None:
    words = ["train", "--data", "data", "--out", "runs/new", *tiny_flags, "--training.max-steps=20"]
    process = start(*words)
    assert read_line(process).startswith("model ")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=PATIENCE) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert steps_done("runs/new") == 20
    assert Path("runs/new/report.html").exists()


def test_generation_whose_reader_leaves_ends_quietly(here: Path) -> None:
    command = 'python -m smallgpt generate runs/small --max-new-tokens 20000 --prompt "Tom had" | head -c 7'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Tom had", "")

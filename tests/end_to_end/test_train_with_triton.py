"""`smallgpt train --kernels.backend triton` as a process of its own: in the interpreter, and refused without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FLAGS = {
    "model.n-layer": 1,
    "model.n-head": 1,
    "model.n-embd": 32,
    "model.block-size": 16,
    "model.dropout": 0.1,
    "training.batch-size": 2,
    "training.max-steps": 3,
    "training.precision": "fp32",
    "training.threads": 1,
    "evaluation.max-tokens": 100,
    "evaluation.sample-every": 0,
    "kernels.backend": "triton",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("It rained all day, and the dog slept. " * 60)
    done = smallgpt({}, "prepare", "text", tmp_path / "notes.txt", "--tokenizer", "bytes", "--out", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    return tmp_path / "data"


def smallgpt(variables: dict[str, str], *words: object) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "smallgpt", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**kept, **variables}, check=False)


def train(variables: dict[str, str], data: Path, out: Path, **changes: object) -> "subprocess.CompletedProcess[str]":
    flags = [f"--{name}={value}" for name, value in {**FLAGS, **changes}.items()]
    return smallgpt(variables, "train", "--data", data, "--out", out, *flags)


def test_it_trains_in_the_interpreter_and_says_with_what(data: Path, tmp_path: Path) -> None:
    done = train({"TRITON_INTERPRET": "1"}, data, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    start = next(event for event in events if event["event"] == "start")
    assert all(start["reasons"][name].startswith("triton: asked for") for name in ("attention", "layer_norm"))
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("variables", "precision", "words"),
    [({}, "fp32", "need a GPU"), ({"TRITON_INTERPRET": "1"}, "bf16", "cannot do bfloat16")],
)
def test_where_it_cannot_run_two_lines_say_why_and_what_to_do(
    data: Path, tmp_path: Path, variables: dict[str, str], precision: str, words: str
) -> None:
    done = train(variables, data, tmp_path / "run", **{"training.precision": precision})
    if "would only be emulated" in done.stderr:
        pytest.skip("this processor has no bf16 products, and is refused for that")
    assert done.returncode == 6
    assert words in done.stderr
    assert "--kernels.attention auto" in done.stderr
    assert ("TRITON_INTERPRET=1" in done.stderr) == (not variables)
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not (tmp_path / "run").exists(), "nothing was begun"

"""`smallgpt train --profile N` on a toy: what it writes and prints, and that it changes nothing."""

import gzip
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from smallgpt.interfaces.cli import profile_table
from tests.interfaces.conftest import leave

TINY = [
    *("--model.n-layer=2", "--model.n-head=2", "--model.n-embd=32", "--model.block-size=32", "--model.dropout=0.1"),
    *("--training.batch-size=4", "--training.micro-batch=2", "--training.max-steps=7", "--optimizer.name=muon"),
    *("--training.threads=1", "--training.compile=off", "--training.precision=fp32"),
    *("--evaluation.sample-tokens=4", "--evaluation.every=2", "--checkpoint.every=3"),
]
Train = Callable[..., int]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    stories = [f"Once Tom had {n} hats and Mia had {n * 7 % 11} kites." for n in range(150)]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    out = folder / "tokens"
    assert leave("prepare", "text", str(folder / "stories.txt"), "--tokenizer", "bytes", "--out", str(out)) == 0
    return out


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seven steps, of which the fourth to sixth were recorded."""
    run = tmp_path_factory.mktemp("run") / "profiled"
    assert leave("train", "--data", str(data), "--out", str(run), "--profile", "3", *TINY) == 0
    return run


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, Any]:
    operations: dict[str, Any] = json.loads((run / "profile" / "operations.json").read_text(encoding="utf-8"))
    return operations


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_profiled_run_is_bit_for_bit_the_run_that_was_not(run: Path, data: Path, tmp_path: Path) -> None:
    assert leave("train", "--data", str(data), "--out", str(tmp_path / "plain"), *TINY) == 0
    (profiled, plain) = (run / "checkpoints" / "step-00000007", tmp_path / "plain" / "checkpoints" / "step-00000007")
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_file(profiled / file), load_file(plain / file)
        assert ours.keys() == theirs.keys()
        assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())

    def numbers(run: Path) -> list[Any]:
        kinds = ("train", "validation", "sample")
        keys = ("event", "step", "loss", "grad_norm", "nats_per_token", "text")
        return [{key: e[key] for key in keys if key in e} for e in events(run) if e["event"] in kinds]

    assert numbers(run) == numbers(tmp_path / "plain")


def test_the_event_names_what_was_written(run: Path) -> None:
    (event,) = [e for e in events(run) if e["event"] == "profile"]
    assert (event["step"], event["steps"]) == (6, 3)
    assert Path(event["trace"]) == run / "profile" / "trace.json.gz"
    with gzip.open(event["trace"], "rt", encoding="utf-8") as file:
        trace = json.load(file)
    assert sum(e["name"] == "smallgpt: step" for e in trace["traceEvents"]) == 3


def test_the_parts_add_up_to_the_step_and_little_is_unnamed(found: dict[str, Any]) -> None:
    assert found["steps"] == 3
    assert sum(row["milliseconds"] for row in found["parts"]) == pytest.approx(found["step_milliseconds"])
    assert sum(row["share"] for row in found["operations"]) == pytest.approx(1)
    times = {(row["part"], row["direction"]): row["milliseconds"] for row in found["parts"]}
    both = {"attention", "attention linear layers", "MLP linear layers", "GELU", "layer norm", "dropout", "embedding"}
    for part in both | {"linear cross-entropy"}:
        assert times[part, "forward"] > 0, part
        assert times[part, "backward"] > 0, part
    for part in ("optimizer", "norm, check and clipping"):
        assert times[part, "update"] > 0, part
    assert times["data loading", "forward"] > 0
    assert times["gradient accumulation", "backward"] > 0
    # Python between the operations, most of it here, where no operation takes long; what matters is that nothing else is.
    unnamed = [row for row in found["operations"] if row["part"] == "rest of the step"]
    assert {row["direction"] for row in unnamed} <= {"forward", "backward"}
    assert not [row for row in unnamed if row["flops"]], "a product that belongs to no part"


def test_the_products_are_those_of_the_model(found: dict[str, Any]) -> None:
    flops = {(row["part"], row["direction"]): row["flops"] for row in found["parts"]}
    tokens, C, layers, vocabulary = 4 * 32, 32, 2, 384
    assert flops["MLP linear layers", "forward"] == 2 * tokens * 8 * C * C * layers
    assert flops["MLP linear layers", "backward"] == 2 * flops["MLP linear layers", "forward"]
    assert flops["attention linear layers", "forward"] == 2 * tokens * 4 * C * C * layers
    assert flops["attention", "forward"] == 2 * 2 * tokens * 32 * C * layers
    assert flops["attention", "backward"] == 2 * flops["attention", "forward"]
    assert flops["linear cross-entropy", "forward"] == 3 * 2 * tokens * C * vocabulary  # it makes its gradients at once


@pytest.mark.parametrize("width", [None, 80, 200])
def test_the_table_fits_its_width(found: dict[str, Any], width: int | None) -> None:
    text = profile_table.in_words(found, width)
    *table, legend = text.splitlines()
    assert max(map(len, table)) <= (width or profile_table.WIDE)
    assert "MLP linear layers, backward" in text
    assert ("GFLOP/s" in table[0]) == (width != 80)
    assert "…" not in text or width == 80
    assert legend.startswith("3 steps of ")
    (total,) = [line for line in table if line.startswith("all ")]
    assert "100.0%" in total


def test_a_run_that_is_too_short_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave("train", "--data", str(data), "--out", str(tmp_path / "run"), "--profile", "5", *TINY) == 2
    words = capsys.readouterr().err
    assert "--profile 5 needs 3 steps to warm up and 5 to record; this run has 7 to go" in words
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"lock"}, "the folder counts as free"


def test_an_interrupted_run_has_the_steps_recorded_so_far(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallgpt.application.training.Loop._checkpoint_due", stop_after(5))
    assert leave("train", "--data", str(data), "--out", str(tmp_path / "run"), "--profile", "3", *TINY) == 143
    (event,) = [e for e in events(tmp_path / "run") if e["event"] == "profile"]
    assert (event["step"], event["steps"]) == (5, 2)


def stop_after(step: int) -> Callable[[Any], bool]:
    def due(loop: Any) -> bool:
        if loop.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    return due


@pytest.mark.parametrize("number", ["0", "-1", "2.5", "many"])
def test_only_a_number_of_steps_is_taken(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("train", "demo", "--profile", number) == 2
    assert "--profile" in capsys.readouterr().err


def test_a_run_that_was_not_profiled_has_nothing_of_it(data: Path, tmp_path: Path) -> None:
    assert leave("train", "--data", str(data), "--out", str(tmp_path / "run"), *TINY) == 0
    assert not (tmp_path / "run" / "profile").exists()

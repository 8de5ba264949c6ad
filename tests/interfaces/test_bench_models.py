"""`smallgpt bench train | generate | scaling`, from the words typed to tables, JSON, records and pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smallgpt.domain.errors import HardwareError
from smallgpt.infrastructure import competitors
from smallgpt.interfaces import cost_growth, fresh_process, generation_systems, training_systems
from tests.interfaces.conftest import Run

TINY = ["--n-layer=1", "--n-head=2", "--n-embd=32", "--block-size=24", "--vocab-size=101"]
TRAIN = ["bench", "train", *TINY, "--batch-size=2", "--steps=2", "--device=cpu"]
GENERATE = ["bench", "generate", *TINY, "--prompt-tokens=4", "--new-tokens=8", "--device=cpu"]
SCALING = ["bench", "scaling", "--block-size=16", "--batch-size=2", "--n-embd", "32", "64", "--n-layer", "1", "3"]
SCALING += ["--vocab-size=64", "--stories", "60", "120", "--steps=2", "--device=cpu"]
ONCE, TWICE = "--rounds=1", "--rounds=2"
HEADER = ["command", "machine", "versions", "commit"]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sittings in this process: starting one takes seconds."""

    def here(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    for module in (training_systems, generation_systems, cost_growth):
        monkeypatch.setattr(module, "in_fresh_process", here)


@pytest.mark.usefixtures("one_process")
def test_training_is_compared_and_recorded(run: Run, tmp_path: Path) -> None:
    record, picture = tmp_path / "made" / "train.json", tmp_path / "made" / "train.png"
    words = ["--system", "transformers", "plain", "smallgpt-fp32", "smallgpt"]
    code, out, err = run(*TRAIN, TWICE, *words, "--json", f"--out={record}", f"--plot={picture}")
    rows = json.loads(out)
    assert code == 0
    assert [row["system"] for row in rows] == words[1:]
    assert (rows[0]["speed_ratio"], rows[0]["memory_ratio"]) == (1.0, 1.0)
    for row in rows:
        assert row["slowest"] <= row["tokens_per_second"] <= row["fastest"]
        assert row["tokens_per_second"] == pytest.approx(2 * 24 / row["step_seconds"])
        assert 0 < row["ceiling_fraction"] < 1
        assert row["first_step_seconds"] > 0
        assert row["peak_memory_bytes"] > 2**20
    precisions = [row["precision"] for row in rows]
    assert precisions[0] == precisions[2] == "fp32"
    assert precisions[1] == precisions[3]
    kept = json.loads(record.read_text())
    assert kept["rows"] == rows
    assert kept["settings"]["vocab_size"] == 101
    assert {*HEADER, "date"} == set(kept["provenance"])
    assert [line.split()[0] for line in err.splitlines()[:4]] == HEADER
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("one_process")
def test_all_systems_train_on_the_same_tokens(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[int]] = []
    draw = training_systems.draw

    def spied(*arguments: Any) -> training_systems.Pairs:
        pairs = draw(*arguments)
        drawn.append([int(x) for inputs, targets in pairs for x in (*inputs.flatten(), *targets.flatten())])
        return pairs

    monkeypatch.setattr(training_systems, "draw", spied)
    assert run(*TRAIN, "--system", "plain", "smallgpt-fp32", ONCE)[0] == 0
    plain, ours = drawn
    assert plain == ours
    assert len(set(plain)) > 50


@pytest.mark.usefixtures("one_process")
def test_a_system_that_cannot_run_is_left_out_unless_it_was_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(system: str, *_: object) -> None:
        raise HardwareError(f"{system} has no compiler")

    monkeypatch.setattr(competitors, "train_step", broken)
    code, out, err = run(*TRAIN, TWICE, "--json")
    assert code == 0
    assert [row["system"] for row in json.loads(out)] == ["smallgpt-fp32", "smallgpt"]
    assert err.count("transformers-compiled is left out: transformers-compiled has no compiler") == 1
    code, out, err = run(*TRAIN, ONCE, "--system", "plain", "smallgpt", "--json")
    assert (code, out) == (6, "")
    assert err.splitlines()[-1] == "smallgpt: plain has no compiler"


@pytest.mark.usefixtures("one_process")
def test_generation_is_compared_for_one_stream_and_many(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "generate.png"
    code, out, err = run(*GENERATE, TWICE, "--streams", "1", "3", "--json", f"--plot={picture}")
    rows = json.loads(out)
    assert code == 0
    ours = ["smallgpt-uncached", "smallgpt", "smallgpt-bf16", "smallgpt-int8"]
    systems = ["transformers", "transformers-bf16", "seed", *ours]
    assert [(row["streams"], row["system"]) for row in rows] == [(n, name) for n in (1, 3) for name in systems]
    for row in rows:
        assert row["slowest"] <= row["tokens_per_second"] <= row["fastest"]
        assert row["first_token_seconds"] > 0
        assert row["peak_memory_bytes"] > 2**20
        assert row["bandwidth_fraction"] > 0
        assert row["prefill_fraction"] > 0
    assert "the systems' tokens are the model's own" in err
    assert "this machine reads " in err
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("one_process")
def test_costs_grow_over_each_size_that_varies(run: Run, tmp_path: Path) -> None:
    record, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    code, out, _ = run(*SCALING, TWICE, "--json", f"--out={record}", f"--plot={picture}")
    rows = json.loads(out)
    assert code == 0
    assert [row["along"] for row in rows] == ["n_embd", "n_layer", "corpus_bytes"]
    assert [[point["size"] for point in row["points"]] for row in rows[:2]] == [[32, 64], [1, 3]]
    assert rows[0]["points"][0] == rows[1]["points"][0] | {"size": 32}  # the base point is measured once
    assert 1 < rows[0]["time_theory"] < 2
    assert 0 < rows[1]["time_theory"] < 1
    assert rows[2]["time_theory"] == rows[2]["memory_theory"] == pytest.approx(1)
    for point in (point for row in rows for point in row["points"]):
        assert point["fastest"] <= point["seconds"] <= point["slowest"]
    assert json.loads(record.read_text())["settings"]["n_head"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("words", "columns"),
    [
        ([*TRAIN, "--system", "plain"], ["tokens/s", "of ceiling", "first step", "peak memory"]),
        ([*GENERATE, "--system", "smallgpt"], ["streams", "tokens/s", "first token"]),
        (SCALING, ["along", "memory", "counted"]),
    ],
    ids=["train", "generate", "scaling"],
)
def test_people_get_a_table(run: Run, words: list[str], columns: list[str]) -> None:
    code, out, _ = run(*words, ONCE)
    assert code == 0
    header = out.splitlines()[1]
    assert all(column in header for column in columns)


def test_a_sitting_in_its_own_process_has_its_own_memory(run: Run) -> None:
    ballast = bytearray(b"x") * 2**29  # of this process, which starts the other
    code, out, _ = run(*TRAIN, "--system", "plain", ONCE, "--json")
    assert code == 0
    assert 2**26 < json.loads(out)[0]["peak_memory_bytes"] < len(ballast) + 2**27


def test_a_process_that_is_killed_is_told_in_words() -> None:
    with pytest.raises(HardwareError, match="was killed, most likely for its memory"):
        fresh_process.in_fresh_process(_die)


def _die() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_compiled_systems_train(run: Run) -> None:
    words = ["--system", "transformers-compiled", "plain-compiled", ONCE, "--json"]
    code, out, _ = run(*TRAIN, *words)
    assert code == 0
    for row in json.loads(out):
        assert row["first_step_seconds"] > 10 * row["step_seconds"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("train --system nobody", 2, "unknown system 'nobody'; use transformers, transformers-compiled, plain"),
        ("train --rounds 0", 2, "rounds 0 is less than 1"),
        ("train --steps 0", 2, "steps 0 is less than 1"),
        ("train --plot speed.txt", 2, "speed.txt names no picture; end it in .png, .svg, .pdf"),
        ("train --out speed.txt", 2, "speed.txt is no JSON file; end it in .json"),
        ("train --system smallgpt --device cuda:99", 6, "device 'cuda:99' is not there"),
        ("generate --streams 0", 2, "Invalid value for --streams: 0 is less than 1"),
        ("generate --new-tokens 200", 2, "32 prompt tokens and 200 new ones do not fit block-size 128"),
        ("generate --device cuda:99", 6, "device 'cuda:99' is not there"),
        ("scaling --n-embd 64 64", 2, "n-embd 64 64 has a value twice; name each once"),
        (
            "scaling --block-size 8 --batch-size 1 --n-embd 32 --n-layer 1 --vocab-size 64 --stories 9",
            2,
            "nothing varies; give a size several values, as --n-embd 64 128 256",
        ),
        ("scaling --device cuda:99", 6, "device 'cuda:99' is not there"),
    ],
)
@pytest.mark.usefixtures("one_process")
def test_mistakes_are_one_or_two_lines(run: Run, arguments: str, code: int, message: str) -> None:
    got, out, err = run("bench", *arguments.split())
    assert (got, out) == (code, "")
    lines = err.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("smallgpt: "))  # below the header, if any
    assert lines[at].startswith(f"smallgpt: {message}")
    assert len(lines) - at <= 2

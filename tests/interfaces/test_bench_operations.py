"""`smallgpt bench attention | layer-norm | cross-entropy`, from the words typed to tables, JSON and a picture."""

import json
import re
from pathlib import Path

import pytest

from tests.interfaces.conftest import Run

QUICK = ["--device=cpu", "--dtype=fp32", "--rounds=1", "--seconds=0"]
TINY = {
    "attention": ["--seq-lens", "8", "16", "--n-head=2", "--head-size=16"],
    "layer-norm": ["--widths", "32", "64", "--rows=16"],
    "cross-entropy": ["--rows", "16", "32", "--vocab-size=50", "--n-embd=16"],
}
SHAPES = {
    "attention": {"batch_size", "seq_len", "n_head", "head_size", "dropout"},
    "layer-norm": {"rows", "width", "add"},
    "cross-entropy": {"rows", "vocab_size", "width"},
}


@pytest.mark.parametrize("command", TINY)
def test_json_is_a_list_of_systems_directions_and_shapes(run: Run, command: str) -> None:
    code, out, err = run("bench", command, *TINY[command], *QUICK, "--json")
    rows = json.loads(out)
    assert code == 0
    assert {row["direction"] for row in rows} == {"forward", "backward", "both"}
    assert {"reference", "torch"} <= {row["system"] for row in rows}
    fields = {"system", "direction", "dtype", "milliseconds", "fastest", "slowest", "ceiling_fraction", "ratio_to_best"}
    fields |= {"rate", "rate_unit", "arithmetic_intensity", "how", "extra_memory_bytes", "input_sets"}
    assert all(set(row) == fields | SHAPES[command] for row in rows)
    assert {row["rate_unit"] for row in rows} == {"GB/s" if command == "layer-norm" else "TFLOP/s"}
    assert {row["input_sets"] for row in rows} == {100}
    assert len({json.dumps([row[name] for name in sorted(SHAPES[command])]) for row in rows}) == 2
    assert [line.split()[0] for line in err.splitlines()[:6]] == [
        "command",
        "machine",
        "versions",
        "commit",
        "device",
        "ceilings",
    ]
    assert re.search(r"^ceilings +[\d.]+ TFLOP/s, .*\n +[\d.]+ GB/s, a large copy", err, re.MULTILINE)
    assert err.count(": 100 input sets in turn, ") == 2


@pytest.mark.parametrize("command", TINY)
def test_tables_have_a_row_a_system_and_the_picture_is_written(run: Run, tmp_path: Path, command: str) -> None:
    picture = tmp_path / "plots" / "times.png"
    words = ["--direction", "forward", "both", "--system", "torch", "reference", "--plot", str(picture)]
    code, out, _ = run("bench", command, *TINY[command], *QUICK, *words)
    assert code == 0
    assert out.count("\n forward ") == out.count("\n both ") == 2 * 2  # shapes, systems
    assert out.count("best other ÷ this") == out.count("GB/s") + out.count("TFLOP/s") == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_addition_is_timed_with_the_norm_when_asked_for(run: Run) -> None:
    code, out, _ = run("bench", "layer-norm", "--widths=32", "--rows=8", "--add", *QUICK, "--json")
    assert code == 0
    assert all(row["add"] is True for row in json.loads(out))


@pytest.mark.parametrize("command", TINY)
def test_help_has_examples(run: Run, command: str) -> None:
    code, out, _ = run("bench", command, "--help")
    assert code == 0
    assert f"smallgpt bench {command}" in out.split("Try:\n")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("attention --seq-lens 8 0", 2, "Invalid value for --seq-lens: 0 is less than 1"),
        ("layer-norm --widths 5.5", 2, "Invalid value for --widths: '5.5' is not a whole number"),
        ("attention --dropout 1", 2, "dropout 1.0 is not in [0, 1); use 0 for none"),
        ("attention --rounds 0", 2, "rounds 0 is less than 1"),
        ("attention --seconds nan", 2, "seconds nan is no length of time; use 0 or more, as 0.1"),
        ("layer-norm --seconds inf", 2, "seconds inf is no length of time"),
        ("cross-entropy --seconds -1", 2, "seconds -1.0 is no length of time"),
        ("attention --n-head 0", 2, "n-head 0 is less than 1"),
        ("attention --head-size -1", 2, "head-size -1 is less than 1"),
        ("cross-entropy --direction sideways", 2, 'Invalid value "sideways" for --direction.'),
        ("layer-norm --plot times.txt", 2, "times.txt names no picture; end it in .png, .svg, .pdf"),
        ("layer-norm --device cpu --system nobody", 2, "unknown system 'nobody'; use torch, reference"),
        ("layer-norm --device cuda:99", 6, "device 'cuda:99' is not there"),
    ],
)
def test_mistakes_are_one_or_two_lines(run: Run, arguments: str, code: int, message: str) -> None:
    got, out, err = run("bench", *arguments.split())
    assert (got, out) == (code, "")
    lines = err.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("smallgpt: "))  # below the header, if any
    assert lines[at].startswith(f"smallgpt: {message}")
    assert len(lines) - at <= 2


def test_a_system_that_does_not_exist_is_refused_before_anything_is_measured(run: Run) -> None:
    code, _, err = run("bench", "attention", *QUICK, "--system", "foo")
    assert code == 2
    assert "unknown system 'foo'" in err
    assert "ceilings" not in err


@pytest.mark.parametrize("sizes", [["--rows=1", "--vocab-size=16"], ["--rows=8", "--vocab-size=1"]], ids=str)
def test_a_single_row_or_id_has_right_systems(run: Run, sizes: list[str]) -> None:
    words = ["--n-embd=16", "--direction", "both", "--system", "torch", "reference", "--json"]
    code, out, err = run("bench", "cross-entropy", *sizes, *QUICK, *words)
    assert code == 0, err
    assert {row["system"] for row in json.loads(out)} == {"torch", "reference"}

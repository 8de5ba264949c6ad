"""`smallgpt kernels compile` as typed, and the committed report against the kernels, apart from the interpreter's process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smallgpt.interfaces.cli import main
from smallgpt.kernels import compile_report
from smallgpt.kernels.compile_report import Row, faults, worse
from smallgpt.kernels.language import INSTALLED
from smallgpt.kernels.launching import ARCHITECTURES
from smallgpt.kernels.select import OPERATIONS

pytestmark = pytest.mark.skipif(not INSTALLED, reason="Triton is not installed here")

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "kernels"
NAMES = ("key", "operation", "target", "kernel", "variant", "tile")
MEASURES = ("instruction", "registers", "spill_bytes", "shared_bytes")


def run(*words: str | Path, code: int = 0) -> str:
    """The stdout of a process where kernels are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def smallgpt(*words: str, code: int = 0) -> str:
    return run("-m", "smallgpt", "kernels", "compile", *words, code=code)


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    """What the operations' host code asks for now: the triton version, and rows that are not compiled."""
    found: dict[str, Any] = json.loads(run(HELPERS / "recompile.py"))
    return found


@pytest.fixture(scope="module")
def committed(asked: dict[str, Any]) -> dict[str, Row]:
    report = compile_report.read()
    if report.triton != asked["triton"]:
        pytest.skip(f"the committed report is of Triton {report.triton}, here is {asked['triton']}")
    return dict(report.rows)


def test_the_committed_report_is_of_the_kernels_and_tiles_as_they_are(
    asked: dict[str, Any], committed: dict[str, Row]
) -> None:
    stale = "run `smallgpt kernels compile --write` and commit src/kernels/compile_report.json"
    known = {tuple(getattr(row, name) for name in NAMES) for row in committed.values()}
    wanted = {tuple(row[name] for name in NAMES) for row in asked["rows"]}
    assert known == wanted, stale


def test_the_committed_report_has_every_operation_on_every_target_and_no_fault(committed: dict[str, Row]) -> None:
    present = {(row.operation, row.target) for row in committed.values()}
    assert present == {(operation, target) for operation in OPERATIONS for target in ARCHITECTURES}
    assert [fault for row in committed.values() for fault in faults(row)] == []


def test_every_cited_measurement_is_in_the_repository(committed: dict[str, Row]) -> None:
    cited = {row.measured for row in committed.values() if row.measured}
    assert [path for path in cited if not (ROOT / path).is_file()] == []


def test_the_committed_report_stays_small() -> None:
    assert compile_report.PATH.stat().st_size < 400_000


def recompiled(keys: list[str]) -> list[Row]:
    rows = [Row(**row) for row in json.loads(run(HELPERS / "recompile.py", *keys))["rows"]]
    assert sorted(row.key for row in rows) == sorted(keys)
    return rows


def sample(committed: dict[str, Row], a_place: int) -> list[str]:
    """Some launches of each operation on each target, the same ones until they change."""
    places: dict[tuple[str, str], list[str]] = {}
    for key in sorted(committed):
        places.setdefault((committed[key].operation, committed[key].target), []).append(key)
    return [key for place in sorted(places) for key in places[place][:a_place]]


def test_a_sample_compiles_to_what_the_committed_report_says(committed: dict[str, Row]) -> None:
    keys = sample(committed, 1)[::2]
    assert [(row.key, word) for row in recompiled(keys) for word in worse(row, committed[row.key])] == []


@pytest.mark.slow
def test_a_larger_sample_compiles_to_what_the_committed_report_says(committed: dict[str, Row]) -> None:
    keys = sample(committed, 8)
    assert [(row.key, word) for row in recompiled(keys) for word in worse(row, committed[row.key])] == []


def test_nothing_is_compiled_while_the_report_is_of_these_kernels(committed: dict[str, Row]) -> None:
    rows = json.loads(smallgpt("--target", "sm_80", "gfx942", "--operation", "layer_norm", "--json"))
    of_report = {row.key: row for row in committed.values()}
    assert {row["target"] for row in rows} == {"sm_80", "gfx942"}
    for row in rows:
        assert {name: row[name] for name in MEASURES} == {
            name: getattr(of_report[row["key"]], name) for name in MEASURES
        }
    words = smallgpt("--target", "sm_90", "--operation", "layer_norm")
    assert words.startswith("layer_norm: the worst of each kernel's launches")
    assert words.rstrip().endswith("launches, 0 of them compiled now; 0 break a rule")


BAD = ("kernels", "compile", "--operation", "layer_norm", "--target", "sm_86", "--json")


def test_bad_launches_are_found_and_end_with_code_6() -> None:
    rows = json.loads(run(HELPERS / "bad_launches.py", "bad", *BAD, "--processes", "1", code=6))
    spilling, large, wrong = rows
    assert spilling["variant"] == "too many registers"
    assert spilling["spill_bytes"] > 0
    assert spilling["faults"] == [f"spills {spilling['spill_bytes']} bytes a thread"]
    assert large["variant"] == "too much shared"
    assert large["instruction"] == "mma.sync"
    assert f"takes {large['shared_bytes']:,} bytes of shared memory of 101,376" in large["faults"]
    assert wrong["variant"] == "not a program"
    assert "does not compile: CompilationError" in wrong["faults"][0]


@pytest.mark.slow
def test_a_crash_of_the_compiler_is_the_fault_of_the_launch_that_caused_it() -> None:
    rows = json.loads(run(HELPERS / "bad_launches.py", "crash", *BAD, "--processes", "2", code=6))
    crashed = [row["variant"] for row in rows if row["faults"] == ["does not compile: the compiler crashed"]]
    assert crashed == ["crash"]
    assert sorted(row["variant"] for row in rows) == ["crash", "not a program", "too many registers", "too much shared"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "sm_91"], "unknown target 'sm_91'; did you mean sm_90?\ntargets: sm_75"),
        (["--operation", "norm"], "unknown operation 'norm'"),
        (["--processes", "0"], "--processes 0 would compile nothing; give 1 or more"),
        ([], "TRITON_INTERPRET is set"),
    ],
)
def test_what_cannot_be_done_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["kernels", "compile", *words])
    assert left.value.code == 2
    assert said in capsys.readouterr().err

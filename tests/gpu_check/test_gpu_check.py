"""The parts of the GPU check that need no GPU: its words, what it makes of results, and that it runs on a bare machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from smallgpt.infrastructure import hardware
from smallgpt.interfaces.operation_systems import Attention, CrossEntropy, LayerNorm
from smallgpt.kernels import timing
from smallgpt.kernels.select import BACKENDS
from tests.gpu_check import __main__ as gpu_check
from tests.gpu_check import decoding, parity, targets, timings, training

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
# As on a machine that has only torch, triton and pytest: importing anything else of ours fails.
BARE = """
import sys
for name in ("hypothesis", "pydantic", "cyclopts", "rich", "datasets", "tokenizers", "tiktoken", "matplotlib", "xdist"):
    sys.modules[name] = None
"""


def bare(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": "typings", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", BARE + code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@WITHOUT_GPU
def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_6() -> None:
    done = bare("from tests.gpu_check.__main__ import main; sys.exit(main([]))")
    assert done.returncode == 6
    assert done.stdout == ""
    assert done.stderr == f"gpu-check: torch {torch.__version__} sees no GPU; nothing was checked\n"


def test_the_kernels_tests_are_collected_without_the_projects_plugins() -> None:
    flags = [*parity.BARE, parity.TESTS, "--collect-only", "-q"]
    done = bare(f"import pytest; sys.path.insert(0, ''); sys.exit(pytest.main({flags!r}))")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("test_layer_norm.py", "test_on_gpu.py"):
        assert name in done.stdout


def test_sections_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check._options(["--only", "parity", "training"]).only == ["parity", "training"]
    assert gpu_check._options([]).out == Path("runs/gpu-check.json")
    with pytest.raises(SystemExit):
        gpu_check._options(["--only", "everything"])
    assert "'linear_cross_entropy'" in capsys.readouterr().err


@WITHOUT_GPU
def test_a_section_that_breaks_is_recorded_as_failed(capfd: pytest.CaptureFixture[str]) -> None:
    result = gpu_check._in_own_process("parity", 60.0)
    assert result["passed"] is False
    assert result["broke"] == "the process ended with exit code 6"  # the child finds no GPU either
    assert gpu_check._in_own_process("parity", -5.0)["broke"] == "stopped: the whole check takes at most 480 s"


@pytest.mark.parametrize(("broken", "code"), [(None, 0), ("layer_norm", 1)])
def test_the_report_holds_every_section_and_the_exit_code_says_whether_all_passed(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    broken: str | None,
    code: int,
) -> None:
    def section(name: str, seconds: float) -> dict[str, Any]:
        judged = [{"met": True}, {"met": False}] if name == "attention" else []
        return {"passed": name != broken, "targets": judged, "seconds": 1.0}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware, "hardware", lambda: SimpleNamespace(processor="some", usable_threads=2, gpus=[]))
    monkeypatch.setattr(gpu_check, "_device", lambda: {"name": "none"})
    monkeypatch.setattr(gpu_check, "_in_own_process", section)
    out = tmp_path / "new" / "check.json"
    assert gpu_check.main(["--out", str(out)]) == code
    report = json.loads(out.read_text())
    assert {"command", "machine", "versions", "commit", "device", "sections", "passed"} == set(report)
    assert list(report["sections"]) == list(gpu_check.SECTIONS)
    assert report["passed"] is (broken is None)  # a target that is missed is told, and fails nothing
    words = capsys.readouterr().out
    assert "attention              passed, 1 of 2 targets met, 1 s" in words
    assert ("layer_norm             FAILED" in words) is (broken is not None)


def test_outcomes_are_read_from_what_pytest_writes(tmp_path: Path) -> None:
    (tmp_path / "log.xml").write_text(
        """<testsuites><testsuite>
        <testcase classname="a.test_x" name="test_one[1]" time="0.5"/>
        <testcase classname="a.test_x" name="test_two" time="1"><failure message="off by 3">long</failure></testcase>
        <testcase classname="a.test_y" name="test_one" time="0"><skipped message="needs a GPU"/></testcase>
        <testcase classname="a.test_y" name="test_two" time="0"><error message="teardown"/></testcase>
        </testsuite></testsuites>"""
    )
    tests = parity.read(tmp_path / "log.xml")
    assert [(t["test"], t["outcome"], t["message"]) for t in tests] == [
        ("test_x::test_one[1]", "passed", None),
        ("test_x::test_two", "failed", "off by 3"),
        ("test_y::test_one", "skipped", "needs a GPU"),
        ("test_y::test_two", "failed", "teardown"),
    ]


def row(system: str, direction: str, milliseconds: float, **shape: Any) -> dict[str, Any]:
    return {"system": system, "direction": direction, "dtype": "bfloat16", "milliseconds": milliseconds, **shape}


def test_attention_is_judged_by_the_best_sdpa_at_its_own_shape() -> None:
    short: dict[str, Any] = {"batch_size": 16, "seq_len": 128, "n_head": 16, "head_size": 64, "dropout": 0.0}
    long = {**short, "seq_len": 1024}
    rows = [
        row("triton", "forward", 2.0, **short),
        row("sdpa-flash", "forward", 4.0, **short),
        row("sdpa-cudnn", "forward", 2.8, **short),
        row("sdpa-cudnn-apart", "forward", 2.2, **short),
        row("torch", "forward", 1.0, **short),  # no forced backend
        row("sdpa-flash", "backward", 0.1, **short),
        row("triton", "backward", 4.0, **long),
        row("sdpa-cudnn", "backward", 3.2, **long),
        row("triton", "both", 4.0, **long),
    ]
    first, second = targets.attention(rows)
    assert first["what"] == "attention T=128 D=64 dropout 0.0 forward: times the best SDPA backend"
    assert (first["wanted"], first["found"], first["met"]) == (1.5, pytest.approx(1.4), False)
    assert first["found_with_q_k_v_apart"] == pytest.approx(1.1)
    assert (second["wanted"], second["found"], second["met"]) == (0.75, pytest.approx(0.8), True)


def test_layer_norm_is_judged_by_its_share_of_the_bandwidth() -> None:
    shape: dict[str, Any] = {"rows": 1000, "add": False}
    rows = [
        row("triton", "forward", 1.0, width=768, **shape),  # 2 x 1000 x 768 x 2 bytes in 1 ms: 3.072 GB/s
        row("triton", "backward", 1.0, width=8192, **shape),
        row("triton", "forward", 1.0, width=256, rows=1000, add=True),
        row("torch", "forward", 0.1, width=768, **shape),
    ]
    forward, backward = targets.layer_norm(rows, bandwidth=4e9)
    assert (forward["wanted"], forward["found"], forward["met"]) == (0.75, pytest.approx(0.768), True)
    assert (backward["wanted"], backward["found"]) == (0.75, pytest.approx(3 * 8192 * 2 * 1000 / 1e-3 / 4e9))


def test_cross_entropy_is_judged_by_memory_and_by_compiled_full_logits() -> None:
    shape: dict[str, Any] = {"rows": 8192, "vocab_size": 50304, "width": 256, "extra_memory_bytes": 64_000_001}
    rows = [row("triton", "both", 2.0, **shape), row("triton", "forward", 9.0, **shape)]
    memory, speed = targets.linear_cross_entropy(rows)
    assert (memory["met"], speed["met"], speed["found"]) == (False, False, None)  # there is nothing to compare with
    rows = [{**rows[0], "extra_memory_bytes": 64_000_000}, row("full-logits-compiled", "both", 2.0, **shape)]
    memory, speed = targets.linear_cross_entropy(rows)
    assert (memory["met"], speed["met"], speed["found"]) == (True, True, 1.0)


@pytest.mark.parametrize("case", [Attention(1, 16, 2, 16), LayerNorm(16, 32), CrossEntropy(16, 50, 16)], ids=str)
def test_a_timing_section_fails_where_our_kernels_did_not_run(
    case: Attention | LayerNorm | CrossEntropy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timings, "_ceilings", lambda *_: {"copy_bytes_per_second": 1e9, "matmul_flops": 1e12})
    result = timings.run([case], torch.device("cpu"))
    assert result["passed"] is False
    assert result["rows"]
    assert result["targets"] == []
    json.dumps(result)
    out = capsys.readouterr().out
    assert "copy bytes per second 1e+09" in out
    assert " reference " in out


def test_the_cases_are_the_targets_shapes() -> None:
    attention = timings.CASES["attention"]
    assert {(c.seq_len, c.dropout) for c in attention if isinstance(c, Attention)} == {
        (128, 0.0), (128, 0.1), (512, 0.0), (1024, 0.0), (2048, 0.0)
    }  # fmt: skip
    assert all(isinstance(c, Attention) and c.batch_size * c.n_head == 256 and c.head_size == 64 for c in attention)
    assert set(gpu_check.SECTIONS) == {"parity", *timings.CASES, "decoding", "training"}


def test_decoding_is_timed_beside_sdpa_and_its_answers_are_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the interpreter; the times mean nothing, but the kernel and the judgement run."""
    monkeypatch.setattr(timing, "copy_bandwidth", lambda device: 1e9)
    cases = [decoding.Decoding(2, 1, 1, 8, 16), decoding.Decoding(1, 3, 2, 9, 16)]
    assert cases[0].lengths() == [8, 6]
    assert cases[0].cache_bytes(2) == 2 * (8 + 6) * 16 * 2
    result = decoding.run(cases, torch.device("cpu"))
    assert result["passed"], result
    assert len(result["rows"]) == 2 * 2 * 2  # cases, dtypes, systems
    assert all(target["found"] > 0 for target in result["targets"])
    assert len(result["targets"]) == 2 * 2
    json.dumps(result)
    assert "decoding 1 x 3, 9 slots, float32: times SDPA" in capsys.readouterr().out
    wrong = BACKENDS["triton"]._replace(cached_attention=lambda q, k, v, lengths: q)
    monkeypatch.setitem(BACKENDS, "triton", wrong)
    assert decoding.run(cases[:1], torch.device("cpu"))["passed"] is False


def test_the_decoding_cases_are_the_seeds_and_gpt2s() -> None:
    assert {(c.n_head, c.slots, c.head_size) for c in decoding.CASES} == {(4, 128, 64), (12, 1024, 64)}
    assert {c.queries for c in decoding.CASES} == {1, 4}


def test_training_is_skipped_where_a_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "NEEDED", ("json", "no_such_library"))
    assert training.run() == {"passed": True, "skipped": "skipped: not importable: no_such_library"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_learns_resumes_tells_and_follows_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, smaller, with torch's backend, which stands in for ours."""
    smaller = {"model.n-layer": 1, "model.n-embd": 32, "model.block-size": 32, "training.batch-size": 4}
    monkeypatch.setattr(training, "TINY", {**training.TINY, **smaller})
    monkeypatch.setattr(training, "ALLOWED", {"fp32": 1e-3})
    result = training.run(backend="torch", device="cpu", steps=10, long=5)
    assert result["passed"], result["checks"]
    assert [check["what"] for check in result["checks"]] == [
        "10 steps in bf16",
        "10 steps in fp16",
        "resumed for 5 more",
        "generate",
        "5 steps in fp32 beside the formula",
    ]

"""The doctor: the machine and its choices with reasons, and a run's faults in plain words."""

import json
from pathlib import Path

import pytest

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import HardwareError
from smallgpt.infrastructure import hardware
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces import machine
from smallgpt.interfaces.cli import main
from smallgpt.interfaces.cli.doctor import doctor


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with one fault: clipped at every step."""
    folder = RunFolder(tmp_path / "run")
    folder.write_config(RunConfig())
    baselines = {"uniform": 7.0, "unigram": 5.0, "bigram": 4.0, "trigram": 3.5}
    events: list[dict[str, object]] = [{"event": "start", "step": 0, "planned_steps": 50, "baselines": baselines}]
    for step in range(1, 51):
        rate = 1e-3 * (1 - step / 51)
        events.append({"event": "train", "step": step, "loss": 3.0, "learning_rate": rate, "grad_norm": 8.0})
    events.append({"event": "end", "step": 50, "reason": "finished"})
    folder.metrics_file.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return folder.path


def test_the_machine_and_what_a_run_would_use(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    shown = capsys.readouterr().out
    for words in ("processor", "threads for this process", "free here", "gpu", "torch  ", "python", "not needed"):
        assert words in shown
    for choice in ("device", "precision", "threads", "compile", "attention", "layer norm", "linear cross entropy"):
        assert any(line.split("  ")[1:2] == [choice] for line in shown.splitlines()), choice
    assert "\nrun " not in shown


def test_json_says_the_same(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    doctor(run, json=True)
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"machine", "versions", "choices", "network", "folders", "run"}
    assert report["machine"]["usable_threads"] >= 1
    assert report["machine"]["memory_bytes"] > 2**28
    assert report["choices"]["device"].startswith(("cpu: ", "cuda: "))
    assert {"path", "writable"} == set(report["folders"]["current folder"])
    (finding,) = report["run"]["findings"]
    assert finding["title"] == "The gradient is clipped at every step"
    assert finding["remedy"].startswith("Raise --training.clip-norm to about 16")


def test_a_run_is_judged_in_plain_words(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    doctor(run)
    shown = capsys.readouterr().out
    assert "Finished after 50 steps." in shown
    assert "warning: The gradient is clipped at every step" in shown
    assert "50 of 50 steps (100%)" in shown
    assert "data folder is not at hand" in shown


def test_a_healthy_run_is_told_so(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    (run / "metrics.jsonl").write_text(text.replace('"grad_norm": 8.0', '"grad_norm": 0.8'), encoding="utf-8")
    doctor(run)
    assert "Nothing is wrong with this run." in capsys.readouterr().out


@pytest.mark.parametrize(("there", "code"), [(True, 0), (False, 4)])
def test_only_a_run_that_cannot_be_read_is_a_failure(
    run: Path, there: bool, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["doctor", str(run if there else run / "nowhere"), "--json"])
    assert left.value.code == code
    out, err = capsys.readouterr()
    assert bool(out) == there
    assert ("config.toml" in err) == (not there)


def test_a_machine_where_nothing_runs_is_still_described(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: RunConfig) -> machine.Machine:
        raise HardwareError("attention: failed to launch.")

    monkeypatch.setattr(machine, "choose_machine", refuse)
    doctor()
    shown = capsys.readouterr().out
    assert "attention: failed to launch." in shown
    assert "processor" in shown


def test_a_folder_that_cannot_be_written_is_named_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "new" / "folder"))
    doctor()
    shown = capsys.readouterr().out
    assert "not writable: set TRITON_CACHE_DIR to another one" in shown
    assert f"{tmp_path / 'new' / 'folder'} (writable)" in shown
    assert not (tmp_path / "new").exists()


def test_what_linux_tells_of_the_processor_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/cpuinfo": [
            *("model name : Some CPU", "physical id : 0", "core id : 0"),
            *("model name : Some CPU", "physical id : 0", "core id : 0"),
            *("model name : Some CPU", "physical id : 1", "core id : 0"),
        ],
        "/proc/meminfo": ["MemTotal: 2048 kB", "MemAvailable: 1024 kB", "HugePages_Total: 0"],
        "/sys/fs/cgroup/memory.max": ["1048576"],
        "/sys/fs/cgroup/memory.current": ["900000"],
        "/sys/fs/cgroup/memory.stat": ["anon 100", "inactive_file 50000"],
    }
    monkeypatch.setattr(hardware, "_lines", lambda path: files[path])
    seen = hardware.hardware()
    assert (seen.processor, seen.cores) == ("Some CPU", 2)
    assert (seen.memory_bytes, seen.available_memory_bytes) == (2**20, 2**20 - 900000 + 50000)
    files["/sys/fs/cgroup/memory.max"] = ["max"]
    assert hardware.hardware().memory_bytes == 2**21
    assert hardware.hardware().available_memory_bytes == 2**20
    monkeypatch.setattr(hardware, "_lines", lambda path: [])
    bare = hardware.hardware()
    assert bare.cores is bare.memory_bytes is bare.available_memory_bytes is None


def test_the_graphics_card_is_described(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hardware, "_gpus", lambda: [hardware.GPU("Tesla T4", "7.5", 16 * 2**30)])
    doctor()
    assert "Tesla T4, capability 7.5, 16.0 GiB" in capsys.readouterr().out

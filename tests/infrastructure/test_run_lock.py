"""Of two rounds of one launch that both believe the run to be theirs, the later one writes it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure import checkpoints
from smallgpt.infrastructure.checkpoints import RunCheckpoints
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.trackers import JsonLines

FORMER = """
import sys, time
from pathlib import Path
from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]), "ours")
print("held", flush=True)
try:
    while sys.argv[2] == "looks":
        lock.check()
        time.sleep(0.02)
    time.sleep(60)
except CheckpointError as error:
    print(error, flush=True)
"""


def former(run: Path, how: str) -> subprocess.Popen[str]:
    """A process of an earlier round, which looks whether the run is still its own, or hangs."""
    process = subprocess.Popen([sys.executable, "-c", FORMER, str(run), how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_later_round_of_a_launch_takes_its_run_over(tmp_path: Path) -> None:
    with former(tmp_path, "looks") as process, RunFolder(tmp_path).lock("ours", patience=30) as lock:
        assert process.stdout is not None
        assert f"{tmp_path} was taken over by {lock.holder}" in process.stdout.readline()
        lock.check()
    assert process.returncode == 0


def test_a_round_that_does_not_notice_is_named_and_no_other_launch_takes_over(tmp_path: Path) -> None:
    with former(tmp_path, "hangs") as process:
        for launch in (None, "another"):
            with pytest.raises(CheckpointError, match=f"in use by process {process.pid} on .*--out"):
                RunFolder(tmp_path).lock(launch, patience=30)
        with pytest.raises(CheckpointError, match=f"still in use by process {process.pid} on .* after 0.3 s"):
            RunFolder(tmp_path).lock("ours", patience=0.3)
        process.kill()


def test_who_was_replaced_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: GPTConfig) -> None:
    run = RunFolder(tmp_path)
    run.lock("ours").check()
    saving, events = RunCheckpoints(run, tiny, None, 2), JsonLines(run.metrics_file, run.check_held)
    saving.save(TrainingState(1, {}, {}, {}))
    usual = checkpoints.write_manifest

    def replaced_meanwhile(folder: Path) -> None:
        (tmp_path / "lock").write_text("process 9 on b\nits mark\nours\n")
        usual(folder)

    monkeypatch.setattr(checkpoints, "write_manifest", replaced_meanwhile)
    writes: tuple[Callable[[], None], ...] = (
        lambda: saving.save(TrainingState(2, {}, {}, {})),  # replaced while it writes the draft
        lambda: saving.save(TrainingState(3, {}, {}, {})),
        lambda: saving.mark_best(1),
        lambda: events.log({"event": "train", "step": 2}),
    )
    for write in writes:
        with pytest.raises(CheckpointError, match="taken over by process 9 on b"):
            write()
    assert [path.name for path in run.checkpoints_folder.iterdir()] == ["step-00000001"]
    events.close()
    assert run.metrics() == []


def test_storage_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(CheckpointError, match="cannot be locked: Function not implemented"):
        RunFolder(tmp_path).lock()

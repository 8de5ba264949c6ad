"""What torchrun is told, what becomes of it, and how often it starts: its processes stop together, and go on exactly."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallgpt.infrastructure import checkpoints
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces.cli import main
from tests.scale_out.conftest import Launch
from tests.scale_out.hosts import ROOT
from tests.scale_out.small_run import LENGTHS, TINY, assert_same_losses, events, losses

FAULTY = str(Path(__file__).with_name("faulty.py"))
AT_ONCE = 30.0  # seconds

pytestmark = pytest.mark.slow


def words(run: str, *more: str) -> list[str]:
    return ["train", "--data", "data", "--out", f"runs/{run}", f"--training.max-steps={LENGTHS['alone']}", *TINY, *more]


def cut_back(made: Path, run: str, to: str, step: int) -> None:
    """A copy of a run as it was right after the checkpoint of that step."""
    shutil.copytree(made / "runs" / run, made / "runs" / to)
    copy = RunFolder(made / "runs" / to)
    for path in copy.checkpoints():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    (copy.checkpoints_folder / "best.json").unlink(missing_ok=True)
    copy.forget_after(step)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_go_on_to_the_same_bits(launch: Launch, made: Path, parallel: str) -> None:
    whole, resumed = f"whole-{parallel}", f"resumed-{parallel}"
    kept = ("--checkpoint.keep=9", f"--training.parallel={parallel}")
    assert launch(2, "-m", "smallgpt", *words(whole, *kept), cwd=made).code == 0
    cut_back(made, whole, resumed, 4)
    done = launch(2, "-m", "smallgpt", "train", "--resume", f"runs/{resumed}", cwd=made)
    assert "resumed  from step 4" in done.out
    assert losses(made, resumed) == losses(made, whole), "bit for bit"
    assert_same_losses(made, whole)


def test_one_process_then_two_then_one(launch: Launch, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_back(made, "alone", "one-two-one", 4)
    fault = json.dumps({"rank": 1, "step": 6, "where": "forward", "how": "terminate"})
    launch(2, FAULTY, "train", "--resume", "runs/one-two-one", cwd=made, FAULT=fault)
    monkeypatch.chdir(made)
    with pytest.raises(SystemExit) as left:
        main(["train", "--resume", "runs/one-two-one"])
    assert left.value.code == 0
    starts = [(event["step"], event["processes"]) for event in events(made, "one-two-one", "start")]
    assert starts == [(0, 1), (4, 2), (7, 1)]
    assert_same_losses(made, "one-two-one")


@pytest.fixture
def running(made: Path, request: pytest.FixtureRequest) -> Iterator[tuple["subprocess.Popen[str]", RunFolder]]:
    """torchrun with two processes amid a run that would take minutes."""
    run = RunFolder(made / "runs" / request.node.name)
    slow = {"FAULT": json.dumps({"rank": -1, "pace": 0.3}), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'typings'}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", FAULTY]
    longer = {"--training.max-steps": "900", "--checkpoint.every": "0"}
    command += [word for word in words(run.path.name) if word.partition("=")[0] not in longer]
    with subprocess.Popen(
        [*command, *(f"{flag}={value}" for flag, value in longer.items())],
        cwd=made,
        env={**os.environ, **slow},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        try:
            end = time.monotonic() + 4 * AT_ONCE
            while not events(made, run.path.name):
                assert time.monotonic() < end
                assert launcher.poll() is None
                time.sleep(0.1)
            yield launcher, run
        finally:
            launcher.kill()


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_stopped_and_saved_once(run: RunFolder) -> None:
    (saved,) = run.checkpoints()
    checkpoints.verify(saved)
    *_, checkpoint, end = run.metrics()
    assert (checkpoint["event"], end["reason"]) == ("checkpoint", "interrupted")
    assert saved.name == f"step-{end['step']:08d}"


@pytest.mark.parametrize("how", ["interrupt", "a batch system"])
def test_a_launcher_that_is_told_to_stop_stops_all_at_one_step(
    running: tuple["subprocess.Popen[str]", RunFolder], how: str
) -> None:
    launcher, run = running
    if how == "interrupt":
        launcher.send_signal(signal.SIGINT)
    else:  # it signals every process, and the launcher passes its signal on
        for process in (*children(launcher.pid), launcher.pid):
            os.kill(process, signal.SIGTERM)
    out, err = launcher.communicate(timeout=2 * AT_ONCE)
    assert_stopped_and_saved_once(run)
    assert out.count("and saved; go on with") == 1
    assert launcher.returncode == 1, "torchrun's, however its processes ended"
    assert "smallgpt:" not in err
    assert err.count("Traceback") == 1, "torchrun's own, of"
    assert "SignalException" in err


def test_processes_whose_launcher_is_killed_save_and_end(
    running: tuple["subprocess.Popen[str]", RunFolder],
) -> None:
    launcher, run = running
    processes = children(launcher.pid)
    assert len(processes) == 2
    launcher.kill()
    end = time.monotonic() + AT_ONCE
    while any(map(is_there, processes)):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert_stopped_and_saved_once(run)


@pytest.mark.parametrize("options", [["--master-port={}"], ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:{}"]])
def test_a_port_that_is_taken_is_told_at_once(made: Path, options: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = [option.format(port) for option in options]
        command = [sys.executable, "-m", "torch.distributed.run", *given, "--rdzv-conf=is_host=true"]
        done = subprocess.run(
            [*command, "-m", "smallgpt", *words("no-port")], cwd=made, capture_output=True, text=True, timeout=AT_ONCE
        )
    assert done.returncode == 1
    assert f"port: {port}" in done.stderr
    assert "address already in use" in done.stderr
    assert not (made / "runs" / "no-port").exists()


def test_a_restart_before_the_first_checkpoint_begins_the_record_anew(
    running: tuple["subprocess.Popen[str]", RunFolder], launch: Launch, made: Path
) -> None:
    """Beside another launch, which it neither meets nor takes a port from."""
    fault = json.dumps({"rank": 1, "step": 2, "where": "forward", "how": "kill"})
    done = launch(2, FAULTY, *words("anew"), options=("--max-restarts=1",), cwd=made, FAULT=fault)
    assert done.code == 0, done.err
    assert len(events(made, "anew", "start")) == 1
    assert_same_losses(made, "anew")
    assert running[0].poll() is None

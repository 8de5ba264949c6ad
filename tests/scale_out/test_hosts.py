"""Several hosts train as one process does, lose one of them, go on without it, and take it back."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from smallgpt.infrastructure.run_folder import RunFolder
from tests.scale_out.hosts import Host, hosts
from tests.scale_out.small_run import TINY, assert_same_losses, events

FAULTY = str(Path(__file__).with_name("faulty.py"))
PORT = 29400
PATIENCE = 120.0  # seconds
STORE = (
    "import sys, time; from torch.distributed import TCPStore; "
    "store = TCPStore(sys.argv[1], int(sys.argv[2]), is_master=True, wait_for_workers=False); time.sleep(600)"
)
QUICK = "last_call_timeout=6,keep_alive_interval=1,keep_alive_max_attempt=8"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hosts_can_be_made")]


def torchrun(host: Host, meeting: Host, nodes: str, conf: str, *options: str) -> list[str]:
    return [
        *("-m", "torch.distributed.run", "--nnodes", nodes, "--local-addr", host.address, *options),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{meeting.address}:{PORT}", "--rdzv-id", "ours"),
        *("--rdzv-conf", f"is_host={str(host is meeting).lower()},{conf}"),
    ]


def train(made: Path, run: str, *words: str) -> list[str]:
    return ["train", "--data", "data", "--out", f"runs/{run}", *TINY, *words]


@contextmanager
def ended(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """At the end, whatever happened."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("per_host", [1, 2])
def test_two_hosts_train_as_one_process_does(made: Path, tmp_path: Path, per_host: int) -> None:
    name = f"hosts-{per_host}"
    with hosts(2) as (first, second, _):
        launches = [
            host.start(
                *torchrun(host, first, "2", QUICK, f"--nproc-per-node={per_host}"),
                *("-m", "smallgpt", *train(made, name, "--training.max-steps=12")),
                cwd=made,
                log=tmp_path / host.address,
            )
            for host in (first, second)
        ]
        with ended(launches):
            codes = [launch.wait(PATIENCE) for launch in launches]
    assert codes == [0, 0], (tmp_path / first.address).read_text()
    assert [event["processes"] for event in events(made, name, "start")] == [2 * per_host]
    assert_same_losses(made, name)


def test_a_host_that_is_cut_off_is_done_without_and_taken_back(made: Path, tmp_path: Path) -> None:
    """That of the first process, amid a checkpoint, so that it still holds the run when the other has gone on."""
    run = RunFolder(made / "runs" / "cut-off")
    stamp = tmp_path / "saving"
    fault = {"rank": 0, "step": 7, "where": "save", "how": "outlast", "stamp": str(stamp), "pace": 0.1}

    def worlds() -> list[int]:
        return [event["processes"] for event in run.metrics() if event["event"] == "start"]

    with hosts(2) as (first, second, meeting):
        store = meeting.start("-c", STORE, meeting.address, str(PORT), cwd=made, log=tmp_path / "store")
        launches = [
            host.start(
                *torchrun(host, meeting, "1:2", QUICK, "--nproc-per-node=1", "--max-restarts=3"),
                *(FAULTY, *train(made, "cut-off", "--training.max-steps=40", "--training.process-timeout=8")),
                cwd=made,
                log=tmp_path / host.address,
                FAULT=json.dumps(fault),
                TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
            )
            for host in (first, second)
        ]
        with ended([store, *launches]):
            until(stamp.exists)
            first.link("down")
            until(lambda: worlds()[-1:] == [1] or all(launch.poll() is not None for launch in launches))
            first.link("up")
            codes = [launch.wait(PATIENCE) for launch in launches]
    told = [(tmp_path / host.address).read_text(errors="replace") for host in (first, second)]
    assert codes == [0, 0], "\n".join(told)
    assert worlds()[-3:] == [2, 1, 2]
    assert "smallgpt: the other processes were lost or took more than 8 s" in told[1]
    assert "resumed  from step 4" in told[1], "the newest checkpoint that was finished"
    assert "runs/cut-off was taken over by process" in told[0]
    assert_same_losses(made, "cut-off", alone="alone-40")

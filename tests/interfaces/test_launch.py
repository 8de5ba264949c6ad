"""What is decided about a launch before its processes meet; tests/scale_out has the rest."""

from pathlib import Path

import pytest
import torch

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import ConfigError, HardwareError
from smallgpt.domain.processes import ALONE
from smallgpt.infrastructure.devices import choose_threads
from smallgpt.infrastructure.launches import local_device
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces.launch import joined_processes, launch_name, run_of_this_launch


def test_without_a_launcher_a_process_is_alone() -> None:
    with joined_processes(RunConfig()) as processes:
        assert processes is ALONE


def test_every_process_needs_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "33")
    with (
        pytest.raises(ConfigError, match=r"batch_size \(32\) is less than the 33 processes"),
        joined_processes(RunConfig()),
    ):
        pass


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun's
    assert choose_threads(None).value == "1"
    assert "shared by 64 processes" in choose_threads(None).reason
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the user's
    assert choose_threads(None).value == "7"


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_device(torch.device("cuda", 1)) == torch.device("cuda", 1), "alone, what was asked for"
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert local_device(torch.device("cuda")) == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(HardwareError, match="process 3 of this host has no GPU: torch sees 2; give --nproc-per-node 2"):
        local_device(torch.device("cuda"))
    assert local_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ConfigError, match="every process would take"):
        local_device(torch.device("cuda", 1))


def test_a_restart_finds_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [tmp_path / "demo", tmp_path / "demo-2"]
    for launch, run in zip(("first", "second"), runs, strict=True):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
        assert run_of_this_launch(runs) is None
        RunFolder(run).lock(launch_name()).close()
        assert run_of_this_launch(runs) == run
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as torchrun says without --rdzv-id
    assert run_of_this_launch(runs) is None
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ConfigError, match="--rdzv-id NAME"):
        run_of_this_launch(runs)

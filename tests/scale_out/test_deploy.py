"""The files of docs/deploy start what they say; a Slurm and a Kubernetes to run them on are not here."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from smallgpt.interfaces.cli import _application
from tests.scale_out.hosts import ROOT

DEPLOY = ROOT / "docs" / "deploy"
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "scontrol $*" >> told; fi
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
SLURM_NODEID=1 SLURM_GPUS_ON_NODE=4 exec "$@"
"""
TORCHRUN = """#!/bin/bash
printf '%s\\n' "$@" > words
if [ -e waits ]; then
  trap 'echo stopped >> told; exit 1' TERM
  touch started
  while true; do sleep 0.05; done
fi
"""
# https://github.com/kubeflow/training-operator, pkg/apis/kubeflow.org/v1/pytorch_types.go and common_types.go
JOB = {"runPolicy", "elasticPolicy", "pytorchReplicaSpecs", "nprocPerNode"}
ELASTIC = {"minReplicas", "maxReplicas", "rdzvBackend", "rdzvPort", "rdzvHost", "rdzvId", "rdzvConf", "standalone"}
ELASTIC |= {"maxRestarts", "metrics"}
REPLICA = {"replicas", "template", "restartPolicy"}


def launcher_and_command(words: list[str]) -> tuple[Any, list[str]]:
    """torchrun's words as torchrun reads them, and those of `smallgpt` after it, as that reads them."""
    from torch.distributed.run import parse_args

    given = parse_args(words)  # type: ignore[no-untyped-call]
    command = given.training_script_args
    assert (given.module, given.training_script, command[0]) == (True, "smallgpt", "train")
    _application("train").parse_args(command, print_error=False, exit_on_error=False)
    return given, command


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, Any]:
    """How to start slurm.sh as Slurm does, with programs that write down what they are called with."""
    for name, text in {"scontrol": SCONTROL, "srun": SRUN, "torchrun": TORCHRUN}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    command = ["bash", str(DEPLOY / "slurm.sh"), "--data", "/shared/my data", "--out", "/shared/runs/mine"]
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {"args": command, "cwd": tmp_path, "env": {**os.environ, **job, "PATH": path}}


def test_slurm_starts_torchrun_on_every_host(slurm: dict[str, Any]) -> None:
    subprocess.run(**slurm, check=True, timeout=30)
    given, command = launcher_and_command((slurm["cwd"] / "words").read_text().splitlines())
    assert command[1:] == ["--data", "/shared/my data", "--out", "/shared/runs/mine"]
    assert (given.nnodes, given.nproc_per_node, given.max_restarts) == ("1:2", "4", 10)
    assert (given.rdzv_backend, given.rdzv_endpoint) == ("c10d", "node7:29967")
    assert (given.rdzv_id, given.rdzv_conf) == ("slurm-1234567", "is_host=0,last_call_timeout=60")


def test_slurm_stops_a_job_in_time_and_queues_it_again(slurm: dict[str, Any]) -> None:
    folder = slurm["cwd"]
    (folder / "waits").touch()
    with subprocess.Popen(**slurm) as job:
        while not (folder / "started").exists():
            assert job.poll() is None
        job.send_signal(signal.SIGTERM)
        assert job.wait(30) == 0
    assert (folder / "told").read_text().splitlines() == ["stopped", "scontrol requeue 1234567"]


def test_the_job_for_kubernetes_has_the_fields_of_its_kind() -> None:
    claim, job = yaml.safe_load_all((DEPLOY / "pytorchjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = job["spec"]
    assert spec.keys() <= JOB
    assert spec["elasticPolicy"].keys() <= ELASTIC
    assert all(pair.keys() == {"key", "value"} for pair in spec["elasticPolicy"]["rdzvConf"])
    assert spec["elasticPolicy"]["rdzvId"], "or a restart does not find its run"
    workers = spec["pytorchReplicaSpecs"]["Worker"]
    assert workers.keys() <= REPLICA
    assert workers["replicas"] <= spec["elasticPolicy"]["maxReplicas"]
    pod = workers["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"
    assert all(isinstance(variable.get("value", ""), str) for variable in container["env"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    launcher, *words = container["command"]
    assert launcher == "torchrun"
    given, _ = launcher_and_command(words)
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert given.nproc_per_node == spec["nprocPerNode"] == str(gpus)

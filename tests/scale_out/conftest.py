"""Launches of several processes, as users start them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from smallgpt.interfaces.cli import main
from tests.scale_out.hosts import ROOT, missing
from tests.scale_out.small_run import LENGTHS, TINY

PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Launched:
    """How a launch ended."""

    code: int
    out: str
    err: str
    ended: float
    """When, by time.time()."""


Launch = Callable[..., Launched]


@pytest.fixture(scope="session")
def launch() -> Launch:
    """Run words under torchrun --standalone with so many processes, to the end."""

    def run(
        n: int, *words: str, options: tuple[str, ...] = (), cwd: Path | None = None, **environment: str
    ) -> Launched:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={n}",
            *options,
            *words,
        ]
        done = subprocess.run(
            command,
            cwd=cwd,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'typings'}",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return Launched(done.returncode, done.stdout, done.stderr, time.time())

    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ of bytes, and in runs/ those of one process."""
    folder = tmp_path_factory.mktemp("made")
    stories = [f"Once Mia had {n} hats and a dog, and {n % 7} kites." for n in range(200)]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    prepare = ["prepare", "text", "stories.txt", "--tokenizer", "bytes", "--out", "data"]
    trains = [
        [
            "train",
            "--data",
            "data",
            "--out",
            f"runs/{name}",
            f"--training.max-steps={steps}",
            "--checkpoint.keep=9",
            *TINY,
        ]
        for name, steps in LENGTHS.items()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (prepare, *trains):
            with pytest.raises(SystemExit) as left:
                main(words)
            assert left.value.code == 0
    return folder


@pytest.fixture(scope="session")
def hosts_can_be_made() -> None:
    """Network namespaces; skips where there can be none."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)

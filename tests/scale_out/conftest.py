"""Launches of several processes, as users start them."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Launched:
    """How a launch ended."""

    code: int
    out: str
    err: str


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
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'typings'}", **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return Launched(done.returncode, done.stdout, done.stderr)

    return run

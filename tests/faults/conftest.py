"""A run to be mistreated, and what a refused command has to look like."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from smallgpt.interfaces.cli import main

# One folder with data and a run is made once; each test works in a copy of it.
TINY = [
    "--model.n-layer=1",
    "--model.n-head=2",
    "--model.n-embd=16",
    "--model.block-size=32",
    "--training.batch-size=4",
    "--training.precision=fp32",
    "--training.threads=1",
    "--evaluation.sample-every=0",
    "--evaluation.sample-tokens=8",
]


def stories(seed: int, number: int) -> list[str]:
    pick = random.Random(seed).choice
    return [f"Once {pick(['Tom', 'Mia'])} had a {pick(['kite', 'dog'])} and {n} hats - héllo." for n in range(number)]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> None:
        """The right exit code, all the words, at most three lines, and nothing else on the screen."""
        lines = self.err.splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith("smallgpt: ")]
        assert len(starts) == 1, self.err
        message = lines[starts[0] :]
        assert len(message) <= 3
        assert "internal error" not in message[0]
        assert not [line for line in lines if "Traceback" in line or ("Error:" in line and line not in message)]
        assert self.out == ""
        assert self.code == code
        for word in words:
            assert word in "\n".join(message)


Run = Callable[..., Ended]
Words = Callable[..., None]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories.txt, data/ of it in bytes, and runs/small of six steps on that."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories(0, 120)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (
            ["prepare", "text", "stories.txt", "--tokenizer", "bytes", "--out", "data"],
            ["train", "--data", "data", "--out", "runs/small", "--training.max-steps", "6", *TINY],
        ):
            with pytest.raises(SystemExit) as left:
                main(words)
            assert left.value.code == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    config = folder / "runs" / "small" / "config.toml"
    config.write_text(config.read_text().replace(str(made), str(folder)))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def call(*words: str) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main(words)
        assert isinstance(left.value.code, int)
        return Ended(left.value.code, *capfd.readouterr())

    return call


@pytest.fixture
def refused(run: Run) -> Words:
    """refused(COMMAND, CODE, WORDS...): it must end like that and leave every file as it was."""

    def check(command: list[str], code: int, *words: str) -> None:
        before = contents(Path.cwd())
        run(*command).refused(code, *words)
        assert contents(Path.cwd()) == before

    return check


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every path below folder, with the bytes of files."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def tiny_flags() -> list[str]:
    return list(TINY)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a command as a process of its own, ended with the test at the latest."""
    started: list[subprocess.Popen[str]] = []

    def call(*words: str, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "smallgpt", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()

"""Real processes: killed while they upload or fetch, and several of them that share a machine's copy."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smallgpt.infrastructure.checkpoints import verify
from smallgpt.infrastructure.run_folder import RunFolder
from tests.faulty_store import files_of
from tests.infrastructure.texts import write_texts
from tests.interfaces.conftest import leave
from tests.scale_out.conftest import launch  # noqa: F401  # a fixture
from tests.scale_out.hosts import ROOT

pytestmark = pytest.mark.slow
SLOW_STORE = """
import sys, time, fsspec
from fsspec.implementations.local import LocalFileSystem
class Slow(LocalFileSystem):
    protocol = "slow"
    def cp_file(self, path1, path2, **options):
        content = open(path1, "rb").read()
        with open(path2, "wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            if "step-00000004/model" in str(path2) or "validation.bin" in str(path2):
                time.sleep(600)
            file.write(content[len(content) // 2 :])
    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("slow://"))
fsspec.register_implementation("slow", Slow)
from smallgpt.interfaces.cli import main
main(sys.argv[1:])
"""
TINY = [
    "--model.n-layer=1",
    "--model.n-head=2",
    "--model.n-embd=32",
    "--model.block-size=32",
    "--training.batch-size=4",
    "--training.compile=off",
    "--evaluation.sample-every=0",
    "--training.max-steps=4",
    "--checkpoint.every=2",
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine with a data folder in a bucket."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMALLGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'typings'}")
    write_texts(
        [f"Story {n}: once there was a dog." for n in range(60)], ["The cat sat on it."] * 9, Path("bucket/data")
    )
    return tmp_path


@contextmanager
def killed_when(words: list[str], there: Path) -> Iterator[None]:
    """Run the command with a slow store until a file is there, and kill it; whatever is left is left."""
    process = subprocess.Popen([sys.executable, "-c", SLOW_STORE, *words])
    try:
        deadline = time.monotonic() + 60
        while not list(Path().glob(str(there))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    yield


def test_a_run_killed_in_an_upload_goes_on_from_the_checkpoint_before(place: Path) -> None:
    """On another machine: the half one in the store is no checkpoint to anybody."""
    words = [
        "train",
        "--data",
        "bucket/data",
        "--out",
        "run",
        "--checkpoint.mirror",
        f"slow://{place}/bucket/run",
        *TINY,
    ]
    with killed_when(words, Path("bucket/run/checkpoints/step-00000004/model.safetensors")):
        assert not Path("bucket/run/checkpoints/step-00000004/manifest.json").exists()
    verify(Path("bucket/run/checkpoints/step-00000002"))
    url = f"file://{place}/bucket/run"
    assert leave("generate", url, "--prompt", "Story", "--max-new-tokens", "3") == 0
    assert leave("train", "--resume", url, "--out", "again", "--checkpoint.mirror", url) == 0
    started = [event for event in RunFolder(Path("again")).metrics() if event["event"] == "start"]
    assert started[-1]["resumed_from"] == 2
    again = files_of(Path("again"))
    assert again.pop("report.html")
    assert files_of(Path("bucket/run")) == again


def test_a_fetch_that_is_killed_leaves_no_data_folder_and_is_gone_on_with(place: Path) -> None:
    data = Path("cache/data")
    words = ["train", "--data", f"slow://{place}/bucket/data", "--out", "run", *TINY]
    with killed_when(words, data / ".data-*.draft/.validation.bin.part"):
        assert not list(data.glob("data-*"))
        (draft,) = data.glob(".data-*.draft")
        first = (draft / "train.bin").stat().st_mtime_ns
    assert leave("train", "--data", f"file://{place}/bucket/data", "--out", "run", *TINY) == 0
    (copy,) = data.iterdir()
    assert files_of(copy) == files_of(Path("bucket/data"))
    assert (copy / "train.bin").stat().st_mtime_ns == first


def test_processes_of_a_launch_train_on_data_behind_a_url_and_go_on_from_one(place: Path, launch) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    url = f"file://{place}/bucket/run"
    words = ["-m", "smallgpt", "train", "--data", f"file://{place}/bucket/data", "--out", "run"]
    done = launch(2, *words, "--checkpoint.mirror", url, *TINY, cwd=place)
    assert done.code == 0, done.err
    assert files_of(Path("bucket/run")).keys() == files_of(Path("run")).keys() - {"report.html"}
    words = ["-m", "smallgpt", "train", "--resume", url, "--out", "again", "--training.max-steps", "6"]
    done = launch(2, *words, cwd=place)
    assert done.code == 0, done.err
    assert RunFolder(Path("bucket/run")).checkpoints()[-1].name == "step-00000006"

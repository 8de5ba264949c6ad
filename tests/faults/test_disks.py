"""Disks that are full or may not be written."""

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Refused = Callable[..., None]
Run = Callable[..., Any]

PREPARE = ["prepare", "text", "x.txt", "--tokenizer", "bytes", "--out", "new"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """disk(OPTIONS): a small file system of its own, mounted for the test."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            made = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if made.returncode != 0:
            pytest.skip(f"a small disk may not be mounted here: {made.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_disk(here: Path, refused: Refused, tiny_flags: list[str], disk: Callable[[str], Path]) -> None:
    place = disk("size=1m,ro")
    words = [str(place), "ead-only file system"]
    refused([*PREPARE[:2], "stories.txt", "--out", str(place / "new")], 3, *words, "choose another --out")
    refused(["train", "--data", "data", "--out", str(place / "run"), *tiny_flags], 3, *words, "another")


def test_a_disk_that_fills_up_while_preparing(here: Path, refused: Refused, disk: Callable[[str], Path]) -> None:
    place = disk("size=64k")
    Path("x.txt").write_text("Once upon a time there was a cat. \n" * 5000)
    out = str(place / "deep" / "new")
    refused([*PREPARE[:-1], out], 3, out, "No space left on device", "free some space")
    assert not list(place.rglob("*new*"))


@pytest.mark.parametrize("how", [[], ["--checkpoint.asynchronous"]], ids=["at once", "asynchronous"])
def test_a_disk_that_fills_up_while_training(
    here: Path, run: Run, tiny_flags: list[str], disk: Callable[[str], Path], how: list[str]
) -> None:
    place = disk("size=1m")
    out = str(place / "run")
    often = [*how, "--checkpoint.every=1", "--checkpoint.keep=99", "--training.max-steps=99", "--model.n-embd=64"]
    words = [flag for flag in tiny_flags if "n-embd" not in flag]
    ended = run("train", "--data", "data", "--out", out, *words, *often)
    assert ended.code == 4
    assert "No space left on device" in ended.err
    assert f"smallgpt train --resume {out}" in ended.err
    assert len(ended.err.splitlines()) <= 3
    saved = sorted(path.name for path in (place / "run" / "checkpoints").iterdir())
    assert saved[0] == "best.json"
    assert saved[1:]
    assert all(name.startswith("step-") for name in saved[1:])
    assert run("evaluate", out, "--data", "data").code == 0
    resumed = run("train", "--resume", out, "--checkpoint.keep=1", f"--training.max-steps={len(saved)}")
    assert resumed.code in (0, 4)  # 4: room for one more is only made after it was written
    assert "Traceback" not in resumed.err


@pytest.mark.parametrize("how", [[], ["--checkpoint.asynchronous"]], ids=["at once", "asynchronous"])
def test_a_disk_without_room_for_the_first_checkpoint(
    here: Path, run: Run, refused: Refused, tiny_flags: list[str], disk: Callable[[str], Path], how: list[str]
) -> None:
    out = str(disk("size=32k") / "run")
    ended = run("train", "--data", "data", "--out", out, *tiny_flags, *how, "--training.max-steps=2")
    assert ended.code == 4
    assert "0 earlier ones" in ended.err
    assert "--resume" not in ended.err
    refused(["train", "--resume", out], 4, "no usable checkpoint", "--out")


def test_a_disk_that_fills_up_between_checkpoints(
    here: Path, run: Run, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from smallgpt.infrastructure.trackers import JsonLines

    def full(self: JsonLines, event: dict[str, Any]) -> None:
        if event["event"] == "train" and event["step"] == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.file.name))

    monkeypatch.setattr(JsonLines, "log", full)
    ended = run("train", "--data", "data", "--out", "runs/new", *tiny_flags, "--training.max-steps=8")
    assert ended.code == 3
    assert "metrics.jsonl: No space left on device" in ended.err
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run("train", "--resume", "runs/new").code == 0

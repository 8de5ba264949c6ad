"""`smallgpt prepare verify`: a line for each file, and an exit code."""

import json
from pathlib import Path

import pytest

from smallgpt.interfaces.cli.prepare_verify import verify
from tests.infrastructure.texts import write_texts

TEXTS = [f"Story {n}: once upon a time there was a dog." for n in range(10)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_texts(TEXTS, TEXTS[:3], tmp_path / "data", name="test")
    return tmp_path / "data"


def test_a_sound_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(folder) == 0
    shown = capsys.readouterr()
    names = ["train.bin", "train.starts.npy", "validation.bin", "validation.starts.npy", "tokenizer.json"]
    assert shown.out.splitlines() == [f"OK       {folder / name}" for name in names]
    assert shown.err.splitlines()[-1] == f"{folder}: every file is what dataset.json says"


def test_a_changed_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "validation.bin").write_bytes((folder / "validation.bin").read_bytes()[::-1])
    assert verify(folder) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == f"differs  {folder / 'validation.bin'}"
    assert "prepare the data again" in lines[3]
    assert verify(folder, json=True) == 3
    found = {verdict["file"]: verdict["problem"] for verdict in json.loads(capsys.readouterr().out)}
    assert [name for name, problem in found.items() if problem] == ["validation.bin"]

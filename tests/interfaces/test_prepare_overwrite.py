"""`smallgpt prepare --overwrite`: replaces what smallgpt made, and loses nothing else."""

import shutil
from pathlib import Path

import pytest

from tests.infrastructure.texts import write_texts
from tests.interfaces.conftest import Run

TEXTS = [f"Story {n}: once upon a time there was a dog." for n in range(10)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_texts(TEXTS, TEXTS[:3], tmp_path / "data", name="test")
    return tmp_path / "data"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "one.txt"
    path.write_text("\n<|endoftext|>\n".join(TEXTS))
    return path


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(run: Run, kept: Path, code: int, words: str, *command: str) -> None:
    """The command ends so, in a line or two, and leaves everything in `kept` as it was."""
    before = everything_in(kept)
    found, said, told = run(*command)
    assert (found, said) == (code, "")
    assert words in told
    assert len(told.splitlines()) <= 2
    assert everything_in(kept) == before


@pytest.mark.parametrize("name", ["notes.txt", "run/checkpoints/step-1/model.safetensors", "train-old.bin"])
@pytest.mark.parametrize("kind", ["text", "bins"])
def test_what_smallgpt_did_not_put_there_is_not_lost(
    kind: str, name: str, run: Run, data: Path, text: Path, tmp_path: Path
) -> None:
    bins = shutil.copytree(data, tmp_path / "bins")
    (data / name).parent.mkdir(parents=True, exist_ok=True)
    (data / name).write_text("days of work")
    words = f"{data / Path(name).parts[0]} is none of a data folder's files and would be lost; move it elsewhere"
    source = {"text": text, "bins": bins}[kind]
    refused(run, tmp_path, 3, words, "prepare", kind, str(source), "--out", str(data), "--overwrite")


def test_what_is_to_be_read_is_not_lost(run: Run, data: Path, tmp_path: Path) -> None:
    (data / "one.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    words = f"one.txt is to be read, and would be lost with {data}; choose another --out"
    target = ["--out", str(data), "--overwrite"]
    refused(run, tmp_path, 2, words, "prepare", "text", str(data / "one.txt"), *target)
    (tmp_path / "link").symlink_to(data)
    refused(run, tmp_path, 2, words, "prepare", "text", str(tmp_path / "link" / "one.txt"), *target)
    (data / "one.txt").unlink()
    words = f"{data} is to be read, and would be lost with {data}"
    for kind in ("bins", "text", "hub"):
        refused(run, tmp_path, 2, words, "prepare", kind, str(data), *target)


def test_a_folder_with_a_card_is_replaced(run: Run, data: Path, text: Path) -> None:
    assert run("prepare", "card", str(data))[0] == 0
    for name in ("train-00000.bin", "validation-12345.bin"):  # of a larger corpus
        (data / name).write_bytes(b"")
    command = ["prepare", "text", str(text), "--tokenizer", "bytes", "--out", str(data), "--overwrite"]
    code, _, told = run(*command)
    assert code == 0, told
    files = {"train.bin", "train.starts.npy", "validation.bin", "validation.starts.npy"}
    assert set(everything_in(data)) == {*files, "tokenizer.json", "dataset.json"}


@pytest.mark.parametrize("name", [".", "", "..", "../../work", "/"])
@pytest.mark.parametrize("overwrite", [["--overwrite"], []])
def test_the_current_folder_is_not_replaced(
    name: str, overwrite: list[str], run: Run, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "inside")
    words = "is the current folder or holds it, so it is not replaced; choose another --out"
    refused(run, tmp_path, 2, words, "prepare", "text", str(text), "--out", name, *overwrite)
    refused(run, tmp_path, 2, words, "prepare", "bins", str(tmp_path), "--out", name, *overwrite)
    assert not list(tmp_path.rglob(".*"))

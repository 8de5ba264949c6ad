"""Everything that training takes on trust is looked at here, file by file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure import verifying
from smallgpt.infrastructure.bpe_training import train_bpe
from smallgpt.infrastructure.verifying import verify, verify_store
from tests.infrastructure.shards import into_shards
from tests.infrastructure.texts import write_texts

TEXTS = [f"Story {n}: once upon a time there was a dog." for n in range(40)]
FILES = ["train-00000.bin", "train-00001.bin", "train-00002.bin", "train.starts.npy"]
FILES += ["validation.bin", "validation.starts.npy", "tokenizer.json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "bytes"
    write_texts(TEXTS, TEXTS[:5], out, name="test")
    into_shards(out, "train", 3)
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def problems(folder: Path) -> dict[str, str]:
    return {verdict.file: verdict.problem for verdict in verify(folder) if verdict.problem is not None}


@pytest.mark.parametrize("at_once", [2, 10, 2**23])
def test_a_sound_folder_is_read_once_with_progress(folder: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_BYTES_AT_ONCE", at_once)
    monkeypatch.setattr(verifying, "_STARTS_AT_ONCE", 7)
    told: list[tuple[int, int | None, str]] = []
    verdicts = list(verify(folder, lambda *report: told.append(report)))
    assert [verdict.file for verdict in verdicts] == FILES
    assert not any(verdict.problem for verdict in verdicts)
    size = sum(path.stat().st_size for path in folder.glob("*.bin"))
    assert told[-1] == (size, size, "bytes verified")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert verify_store(folder).documents("train") == 40


def _ids(number: int, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / f"train-0000{number}.bin"
        change(np.fromfile(path, dtype="<u2")).tofile(path)

    return damage


def _starts(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "train.starts.npy"
        np.save(path, change(np.load(path)))

    return damage


def _facts(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        document["splits"]["train"] |= changes
        (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")

    return damage


def _put(at: int, value: int) -> Callable[[Any], Any]:
    return lambda array: np.concatenate([array[:at], np.array([value], dtype=array.dtype), array[at + 1 :]])


@pytest.mark.parametrize(
    ("damage", "file", "words"),
    [
        (_ids(1, _put(100, 97)), "train-00001.bin", "SHA-256 "),
        (_ids(2, _put(100, 60_000)), "train-00002.bin", "token id 60000, but the vocabulary ends at 256"),
        (_ids(0, lambda ids: ids[:-1]), "train-00000.bin", "bytes, but dataset.json says"),
        (lambda folder: (folder / "train-00001.bin").unlink(), "train-00001.bin", "cannot be read (No such file"),
        (_starts(_put(9, 3)), "train.starts.npy", "document 9 starts at 3, after "),
        (_starts(_put(39, 10**6)), "train.starts.npy", "document 39 starts at 1000000, after "),
        (_starts(_put(0, -1)), "train.starts.npy", "document 0 starts at -1"),
        (_starts(lambda starts: starts + 1), "train.starts.npy", "a document starts at 1, but no end-of-text"),
        (_starts(lambda starts: starts[:-1]), "train.starts.npy", "int64 (39,), but dataset.json says 40 documents"),
        (_facts(highest_id=200), "dataset.json", "highest_id is 200, but 256 is the highest"),
        (_facts(sha256="0" * 64), "dataset.json", "the train split's sha256 is not that of its files"),
        (lambda folder: train_bpe(TEXTS, 300).save(folder / "tokenizer.json"), "tokenizer.json", "fingerprint"),
    ],
)
def test_the_file_that_differs_is_named(damage: Callable[[Path], None], file: str, words: str, folder: Path) -> None:
    damage(folder)
    found = problems(folder)
    assert list(found) == [file]
    assert words in found[file]
    with pytest.raises(DataError):
        verify_store(folder)


def test_without_a_manifest_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data folder"):
        list(verify(tmp_path / "nowhere"))

"""Data folders: what opening tells, and what it refuses without reading a token."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure import tokens as tokens_module
from smallgpt.infrastructure.bpe_training import train_bpe
from smallgpt.infrastructure.token_store import open_store
from smallgpt.infrastructure.verifying import verify_store
from tests.infrastructure.shards import into_shards
from tests.infrastructure.texts import write_texts

TRAIN = [f"Story {i}: once upon a time there was a dog." for i in range(30)]
VALIDATION = ["The cat sat on the mat.", "Café 🙂"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "bytes"
    write_texts(TRAIN, VALIDATION, out)
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_a_data_folder_reads_back(folder: Path) -> None:
    store = verify_store(folder)
    tokens = store.tokens("validation")[:]
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [*VALIDATION[0].encode(), 256, *VALIDATION[1].encode(), 256]
    assert store.text_bytes("validation") == sum(len(text.encode()) for text in VALIDATION)
    assert (store.documents("train"), store.documents("validation")) == (30, 2)
    assert (store.vocab_size, store.end_of_text) == (257, 256)
    assert store.tokenizer_file == folder / "tokenizer.json"
    assert store.baselines.keys() == {"uniform", "unigram", "bigram", "trigram", "fitted_tokens"}
    assert store.baselines["unigram"] < store.baselines["uniform"] == pytest.approx(np.log(257))
    tokenizer = store.tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(tokens.tolist()) == "<|endoftext|>".join([*VALIDATION, ""])
    with pytest.raises(DataError, match="no split 'test', only train, validation"):
        store.tokens("test")


def _manifest_change(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        (folder / "dataset.json").write_text(json.dumps(document | changes), encoding="utf-8")

    return change


def _cut(folder: Path) -> None:
    content = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(content[:-1])


def _grow(folder: Path) -> None:
    with (folder / "validation.bin").open("ab") as file:
        file.write(b"\1\0")


def _split_change(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        document["splits"]["train"] |= changes
        (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, r"train\.bin: \d+ bytes, but dataset.json says \d+ tokens of 2 bytes.*prepare the data again"),
        (_grow, r"validation\.bin: \d+ bytes"),
        (_split_change(highest_id=257), r"token id 257, but the vocabulary ends at 256"),
        (lambda folder: (folder / "validation.bin").unlink(), r"validation\.bin: cannot be read"),
        (lambda folder: (folder / "dataset.json").unlink(), r"token files without.*smallgpt prepare bins"),
        (lambda folder: (folder / "dataset.json").write_text("{"), r"dataset\.json: the file: Invalid JSON"),
        (_manifest_change(format_version=1), r"format_version"),
        (_manifest_change(dtype="float32"), r"dtype"),
        (_manifest_change(splits={}), r"no split 'train'"),
        (_manifest_change(vocab_size=200), r"token id 256"),
        (_manifest_change(dtype="uint32"), r"tokens of 4 bytes"),
        (lambda folder: shutil.rmtree(folder), r"no such data folder; `smallgpt prepare demo --out"),
    ],
)
def test_a_damaged_folder_is_refused(damage: Callable[[Path], None], words: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(DataError, match=words):
        open_store(folder)


def test_a_manifest_cannot_point_outside_its_folder(folder: Path) -> None:
    text = (folder / "dataset.json").read_text(encoding="utf-8")
    (folder / "dataset.json").write_text(text.replace("train.bin", "../copy/train.bin"), encoding="utf-8")
    with pytest.raises(DataError, match=r"splits\.train\.files"):
        open_store(folder)


def test_another_tokenizer_is_noticed(folder: Path) -> None:
    train_bpe(TRAIN, 300).save(folder / "tokenizer.json")
    with pytest.raises(DataError, match=r"fingerprint .* but the tokens were made with"):
        _ = open_store(folder).tokenizer


def test_ids_that_16_bits_cannot_hold_are_refused_by_the_manifest_alone(folder: Path) -> None:
    _manifest_change(vocab_size=70_000)(folder)
    open_store(folder)
    _split_change(highest_id=65_536)(folder)
    with pytest.raises(
        DataError, match=r"train\.bin: token id 65536 in a file of uint16, which ends at 65535; .*uint32"
    ):
        open_store(folder)


def test_a_damaged_id_is_refused_by_the_batch_that_has_it(folder: Path) -> None:
    content = bytearray((folder / "train.bin").read_bytes())
    content[20:22] = b"\x60\xea"
    (folder / "train.bin").write_bytes(content)
    tokens = open_store(folder).tokens("train")
    assert len(tokens[11:]) == len(tokens) - 11
    with pytest.raises(DataError, match=rf"train\.bin: token id 60000 at position 10 .*\n.*prepare verify {folder}"):
        tokens.windows(np.array([100, 5]), 8)


def test_opening_maps_no_token_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a token file was opened")

    monkeypatch.setattr(tokens_module, "mapped", refuse)
    store = open_store(folder)
    assert len(store.tokens("train")) == sum(len(text.encode()) + 1 for text in TRAIN)


@pytest.mark.parametrize("shards", [2, 7, 1000])
def test_shards_are_the_stream_without_them(folder: Path, shards: int) -> None:
    whole = open_store(folder).tokens("train")[:].tolist()
    into_shards(folder, "train", shards)
    verify_store(folder)
    began = time.process_time()
    store = open_store(folder)
    assert time.process_time() - began < 0.1  # 1,000 shards: not one of them is opened
    assert len(store.manifest.splits["train"].files) == shards
    assert store.tokens("train")[:].tolist() == whole
    starts = np.arange(0, len(whole) - 40, 13)
    assert store.tokens("train").windows(starts, 40).tolist() == [whole[at : at + 40] for at in starts.tolist()]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"train\.starts\.npy: cannot be read \(No such file"),
        (b"", r"train\.starts\.npy: .*prepare the data again"),
        (b"no array", r"train\.starts\.npy: not a NumPy file"),
        (np.arange(4.0), r"train\.starts\.npy: float64 \(4,\), but dataset\.json says 30 documents"),
        (np.array([{}]), r"train\.starts\.npy: not a NumPy file"),  # a pickle is never loaded
    ],
)
def test_document_starts_of_every_wrong_kind(content: object, words: str, folder: Path) -> None:
    path = folder / "train.starts.npy"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    with pytest.raises(DataError, match=words):
        open_store(folder).folders[0].starts("train")

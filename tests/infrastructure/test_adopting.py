"""Adopted token files: what they tell, and which are refused."""

import errno
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.adopting import adopt_bins
from smallgpt.infrastructure.bpe_training import train_bpe
from smallgpt.infrastructure.corpora.parts import Corpus
from smallgpt.infrastructure.token_store import open_store
from smallgpt.infrastructure.tokenizing import choosing
from smallgpt.infrastructure.tokenizing.choosing import TokenizerChoice
from smallgpt.infrastructure.tokenizing.making import Options, make_data_folder
from smallgpt.infrastructure.verifying import verify_store
from tests.infrastructure.texts import Texts

STORIES = [f"Story {i}. Once upon a time the cat number {i} sat on café {i * i}." for i in range(100)]


@pytest.fixture
def bins(tmp_path: Path) -> Path:
    """What another program left: raw 16-bit tokens and this tokenizer."""
    folder = tmp_path / "bins"
    folder.mkdir()
    tokenizer = train_bpe(STORIES, 300)
    assert tokenizer.end_of_text is not None
    for name, texts in {"train.bin": STORIES[:90], "val.bin": STORIES[90:]}.items():
        ids = [token for text in texts for token in [*tokenizer.encode(text), tokenizer.end_of_text]]
        (folder / name).write_bytes(np.array(ids, dtype="<u2").tobytes())
    tokenizer.save(folder / "tokenizer.json")
    return folder


def test_token_files_with_a_tokenizer_tell_everything(bins: Path, tmp_path: Path) -> None:
    manifest = adopt_bins(bins, tmp_path / "out")
    corpus = Corpus("test", (Texts(tuple(STORIES[:90])),), (Texts(tuple(STORIES[90:])),))
    choice = TokenizerChoice(str(bins / "tokenizer.json"))
    expected = make_data_folder(corpus, tmp_path / "same", Options(choice))
    assert manifest.model_dump(exclude={"source"}) == expected.model_dump(exclude={"source"})
    verify_store(tmp_path / "out")
    assert (tmp_path / "out" / "train.bin").samefile(bins / "train.bin")  # a link: no second copy of a large corpus


def test_token_files_are_copied_where_links_are_not_possible(
    bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    adopt_bins(bins, tmp_path / "out")
    assert not (tmp_path / "out" / "train.bin").samefile(bins / "train.bin")
    verify_store(tmp_path / "out")


def test_token_files_without_a_tokenizer(bins: Path, tmp_path: Path) -> None:
    manifest = adopt_bins(bins, tmp_path / "out", tokenizer="none")
    assert manifest.tokenizer is None
    assert manifest.vocab_size == 300
    train = manifest.splits["train"]
    assert (train.documents, train.text_bytes, train.longest_document) == (None, None, None)
    store = open_store(tmp_path / "out")
    assert (store.tokenizer, store.tokenizer_file, store.end_of_text) == (None, None, None)


def test_character_files_are_not_taken_for_gpt2(bins: Path, tmp_path: Path) -> None:
    (bins / "tokenizer.json").unlink()
    (bins / "meta.pkl").write_bytes(b"something else")
    with pytest.raises(
        DataError, match=r"meta\.pkl is no table of characters: .*\n.*--tokenizer names another .* or none"
    ):
        adopt_bins(bins, tmp_path / "out")
    assert adopt_bins(bins, tmp_path / "out", tokenizer="none").tokenizer is None


def test_gpt2_is_the_default_where_its_ids_fit(bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bins / "tokenizer.json").unlink()
    monkeypatch.setattr(choosing, "gpt2_tokenizer", lambda: train_bpe(STORIES, 300))
    assert adopt_bins(bins, tmp_path / "out").tokenizer is not None
    with (bins / "train.bin").open("ab") as file:
        file.write(np.array([50257], dtype="<u2").tobytes())
    manifest = adopt_bins(bins, tmp_path / "wide")
    assert (manifest.tokenizer, manifest.vocab_size) == (None, 50258)


def test_files_without_end_of_text_have_no_known_documents(bins: Path, tmp_path: Path) -> None:
    ids = np.fromfile(bins / "train.bin", dtype="<u2")
    ids[ids != 299].tofile(bins / "train.bin")
    manifest = adopt_bins(bins, tmp_path / "out")
    assert manifest.splits["train"].documents is None
    assert manifest.splits["train"].text_bytes == sum(len(text.encode()) for text in STORIES[:90])


def _append(path: Path, content: bytes) -> None:
    file: IO[bytes]
    with path.open("ab") as file:
        file.write(content)


@pytest.mark.parametrize(
    ("damage", "options", "words"),
    [
        (lambda bins: _append(bins / "train.bin", b"x"), {}, r"train\.bin: \d+ bytes are not a whole number of 16-bit"),
        (lambda bins: (bins / "val.bin").write_bytes(b""), {}, r"val\.bin: 0 bytes"),
        (lambda bins: (bins / "val.bin").unlink(), {}, r"no validation\.bin or val\.bin"),
        (lambda bins: (bins / "train.bin").unlink(), {}, r"no train\.bin"),
        (lambda bins: _append(bins / "val.bin", b"\x2c\x01"), {}, r"token id 300, but the bpe tokenizer has 300 ids"),
        (lambda bins: None, {"tokenizer": "bytes"}, r"token id 299, but the bytes tokenizer has 257 ids"),
    ],
)
def test_unsound_token_files(damage: Any, options: dict[str, str], words: str, bins: Path, tmp_path: Path) -> None:
    damage(bins)
    with pytest.raises(DataError, match=words):
        adopt_bins(bins, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Token files of 32 bits, as a program with a large vocabulary leaves them."""
    folder = tmp_path / "wide"
    folder.mkdir()
    ids = np.random.default_rng(0).zipf(1.2, 5000).clip(1, 127_999)
    for name in ("train.bin", "val.bin"):
        ids.astype("<u4").tofile(folder / name)
    return folder


@pytest.mark.parametrize("largest", [127_999, 60_000])
def test_files_of_32_bits_are_recognised_and_adopted_when_told(largest: int, wide: Path, tmp_path: Path) -> None:
    ids = np.fromfile(wide / "train.bin", dtype="<u4").clip(1, largest)
    ids.tofile(wide / "train.bin")
    with pytest.raises(DataError, match=r"train\.bin: every second 16-bit id is 0 .* --dtype uint32"):
        adopt_bins(wide, tmp_path / "out")
    manifest = adopt_bins(wide, tmp_path / "out", dtype="uint32", tokenizer="none")
    assert (manifest.dtype, manifest.splits["train"].highest_id) == ("uint32", ids.max())
    assert verify_store(tmp_path / "out").tokens("train")[:].tolist() == ids.tolist()


def test_16_bit_files_are_not_taken_for_32_bits(bins: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"token id \d+; no vocabulary is that large: leave --dtype uint32 out"):
        adopt_bins(_even(bins), tmp_path / "out", dtype="uint32")
    few = np.random.default_rng(0).integers(0, 3, 5000)  # an alphabet of three letters
    for name in ("train.bin", "val.bin"):
        few.astype("<u2").tofile(bins / name)
    assert adopt_bins(bins, tmp_path / "out", tokenizer="none").vocab_size == 3


def _even(bins: Path) -> Path:
    """The same files with a whole number of 32-bit ids."""
    for name in ("train.bin", "val.bin"):
        ids = np.fromfile(bins / name, dtype="<u2")
        ids[: len(ids) // 2 * 2].tofile(bins / name)
    return bins


def test_documents_of_adopted_files_start_behind_an_end_of_text(bins: Path, tmp_path: Path) -> None:
    ids = np.fromfile(bins / "train.bin", dtype="<u2")
    np.concatenate([[299], ids[:-1], [5, 299, 299, 7]]).astype("<u2").tofile(bins / "train.bin")
    adopt_bins(bins, tmp_path / "out")
    store = verify_store(tmp_path / "out")
    starts, tokens = store.folders[0].starts("train"), store.tokens("train")[:]
    assert len(starts) == store.documents("train") == 91
    assert starts[0] == 1
    assert (tokens[starts - 1] == 299).all()
    assert (tokens[starts] != 299).all()


def test_adopting_what_is_a_data_folder_or_with_an_untrained_bpe(bins: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be trained on token files"):
        adopt_bins(bins, tmp_path / "out", tokenizer="bpe")
    adopt_bins(bins, tmp_path / "out")
    (tmp_path / "out" / "validation.bin").unlink()
    with pytest.raises(DataError, match="is a data folder already"):
        adopt_bins(tmp_path / "out", tmp_path / "again")

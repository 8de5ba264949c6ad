"""Data folders from start to end: what is written, what is refused, and that a failure leaves everything as it was."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer as HubTokenizer

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure import data_folder, preparing
from smallgpt.infrastructure.corpora import demo
from smallgpt.infrastructure.data_folder import write_data_folder
from smallgpt.infrastructure.preparing import adopt_bins, prepare_demo, prepare_hub, prepare_text
from smallgpt.infrastructure.token_store import open_store, verify_store
from smallgpt.infrastructure.tokenizers import Tokenizer, byte_tokenizer, train_bpe

STORIES = [f"Story {i}. Once upon a time the cat number {i} sat on café {i * i}." for i in range(100)]


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    return path


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tokenizer", ["bpe", "bytes"])
def test_text_files_become_a_data_folder(tokenizer: str, stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "data"
    seen: list[tuple[int, int | None, str]] = []
    manifest = prepare_text(
        [stories], out, tokenizer=tokenizer, vocab_size=300, progress=lambda *report: seen.append(report)
    )
    assert {path.name for path in out.iterdir()} == {"train.bin", "validation.bin", "tokenizer.json", "dataset.json"}
    assert json.loads((out / "dataset.json").read_text(encoding="utf-8")) == manifest.model_dump()
    store = verify_store(out)
    assert store.manifest == manifest
    assert manifest.tokenizer is not None
    assert manifest.tokenizer.kind == tokenizer
    assert manifest.source == "stories.txt"
    assert any("baselines" in what for _, _, what in seen)

    made = store.tokenizer
    assert made is not None
    documents: list[str] = []
    for split, facts in manifest.splits.items():
        ids = store.tokens(split).tolist()
        assert facts.sha256 == hashlib.sha256((out / facts.files[0].name).read_bytes()).hexdigest()
        assert len(ids) == facts.tokens
        assert ids[-1] == made.end_of_text
        texts = made.decode(ids).split("<|endoftext|>")[:-1]
        assert len(texts) == facts.documents
        assert sum(len(text.encode()) for text in texts) == facts.text_bytes
        assert max(len(made.encode(text)) for text in texts) == facts.longest_document
        documents += texts
    assert sorted(documents) == sorted(STORIES)
    hub = HubTokenizer.from_file(str(out / "tokenizer.json"))
    assert hub.encode(STORIES[0]).ids == made.encode(STORIES[0])


def test_preparing_twice_gives_the_same_bytes(stories: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prepare_text([stories], tmp_path / name, vocab_size=300)
    assert everything_in(tmp_path / "a") == everything_in(tmp_path / "b")


def test_literal_control_text_in_a_document_stays_text(tmp_path: Path) -> None:
    texts = [f"{text} <|endoftext|> more" for text in STORIES]
    manifest = write_data_folder(tmp_path / "out", texts, texts[:3], byte_tokenizer(), "test")
    ids = open_store(tmp_path / "out").tokens("train")
    assert int((ids == 256).sum()) == manifest.splits["train"].documents == len(texts)


def test_large_vocabularies_take_32_bits(tmp_path: Path) -> None:
    vocabulary = {bytes([byte]): byte for byte in range(256)} | {b"cat": 70_000}
    tokenizer = Tokenizer(vocabulary, [], 65_536)
    manifest = write_data_folder(tmp_path / "out", ["cat " * 50], ["cat"], tokenizer, "test")
    assert (manifest.dtype, manifest.vocab_size) == ("uint32", 70_001)
    store = open_store(tmp_path / "out")
    assert store.tokens("validation").tolist() == [70_000, 65_536]
    assert store.tokens("train").dtype == np.uint32
    assert (tmp_path / "out" / "validation.bin").read_bytes() == np.array([70_000, 65_536], "<u4").tobytes()


def test_baselines_are_left_out_when_the_vocabulary_is_too_large_to_count(tmp_path: Path) -> None:
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, [], 3_000_000)
    manifest = write_data_folder(tmp_path / "out", ["text " * 50], ["text"], tokenizer, "test")
    assert manifest.baselines is None
    assert open_store(tmp_path / "out").baselines == {}


def test_baselines_are_counted_on_a_bounded_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_folder, "FITTED_TOKENS", 500)
    manifest = write_data_folder(tmp_path / "out", STORIES, STORIES[:5], byte_tokenizer(), "test")
    assert manifest.baselines is not None
    assert manifest.baselines["fitted_tokens"] == 500


def test_writing_in_parts_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data_folder(tmp_path / "whole", STORIES, STORIES[:5], byte_tokenizer(), "test")
    monkeypatch.setattr(data_folder, "_TOKENS_AT_ONCE", 100)
    write_data_folder(tmp_path / "parts", STORIES, STORIES[:5], byte_tokenizer(), "test")
    assert everything_in(tmp_path / "whole") == everything_in(tmp_path / "parts")


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"a", b"\xef\xbb\xbf", b"short text\n"])
def test_too_little_text_is_refused_and_leaves_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"white space|too few to learn from"):
        prepare_text([tmp_path / "tiny.txt"], tmp_path / "out", vocab_size=257)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.txt"]


def test_an_existing_folder_is_kept_unless_told(stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_text([stories], out, tokenizer="bytes")
    before = everything_in(out)
    with pytest.raises(DataError, match=r"out exists already; .*--overwrite"):
        prepare_text([stories], out, vocab_size=300)
    assert everything_in(out) == before
    prepare_text([stories], out, vocab_size=300, overwrite=True)
    assert verify_store(out).vocab_size == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "stories.txt"]


def test_overwriting_replaces_data_folders_only(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for out in (tmp_path / "thesis", stories):
        before = everything_in(tmp_path)
        with pytest.raises(DataError, match="not a data folder and will not be replaced"):
            prepare_text([stories], out, overwrite=True)
        assert everything_in(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_everything_as_it_was(
    overwrite: bool, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if overwrite:
        prepare_text([stories], out, tokenizer="bytes")
    before = everything_in(tmp_path)

    class FullDisk(data_folder._Writer):
        def flush(self) -> None:
            self.file.write(b"some of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(data_folder, "_Writer", FullDisk)
    with pytest.raises(DataError, match=r"out: cannot be written \(No space left on device\); free some space"):
        prepare_text([stories], out, tokenizer="bytes", overwrite=overwrite)
    assert everything_in(tmp_path) == before
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_a_place_that_cannot_be_written(stories: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be written \(Not a directory\); choose another --out"):
        prepare_text([stories], stories / "inside" / "out", tokenizer="bytes")


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[str]:
        yield from STORIES
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_data_folder(tmp_path / "out", interrupted(), STORIES, byte_tokenizer(), "test")
    assert list(tmp_path.iterdir()) == []


def test_a_ten_megabyte_line_is_split_and_written(tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("the cat sat. " * 800_000)
    manifest = prepare_text([tmp_path / "line.txt"], tmp_path / "out", vocab_size=300)
    train, validation = manifest.splits["train"], manifest.splits["validation"]
    assert (train.documents, validation.documents) == (1, 1)
    assert (train.text_bytes or 0) + (validation.text_bytes or 0) == 13 * 800_000
    assert validation.text_bytes == pytest.approx(0.05 * 13 * 800_000, rel=0.01)


def test_a_tokenizer_can_come_from_a_file(stories: Path, tmp_path: Path) -> None:
    first = prepare_text([stories], tmp_path / "a", vocab_size=300)
    second = prepare_text([stories], tmp_path / "b", tokenizer=str(tmp_path / "a" / "tokenizer.json"))
    assert second.tokenizer == first.tokenizer
    with pytest.raises(ConfigError, match="tokenizer 'sentencepiece' is unknown: gpt2, bpe, bytes"):
        prepare_text([stories], tmp_path / "c", tokenizer="sentencepiece")


def test_the_demo_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "split", lambda: (STORIES[:90], STORIES[90:]))
    manifest = prepare_demo(tmp_path / "out", vocab_size=300)
    assert (manifest.source, manifest.splits["train"].documents, manifest.vocab_size) == ("demo", 90, 300)


def test_a_dataset_in_hub_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "stories" / "data"
    folder.mkdir(parents=True)
    for split, texts in {"train": STORIES[:90], "validation": STORIES[90:]}.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / f"{split}-00000-of-00001.parquet")
    manifest = prepare_hub(str(tmp_path / "stories"), tmp_path / "out", tokenizer="bytes")
    assert [facts.documents for facts in manifest.splits.values()] == [90, 10]
    assert manifest.source == "stories"
    verify_store(tmp_path / "out")


# --- adopted token files


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
    expected = write_data_folder(tmp_path / "same", STORIES[:90], STORIES[90:], train_bpe(STORIES, 300), "test")
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
    (bins / "meta.pkl").write_bytes(b"never loaded")
    assert adopt_bins(bins, tmp_path / "out").tokenizer is None


def test_gpt2_is_the_default_where_its_ids_fit(bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bins / "tokenizer.json").unlink()
    monkeypatch.setattr(preparing, "gpt2_tokenizer", lambda: train_bpe(STORIES, 300))
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


def test_adopting_what_is_a_data_folder_or_with_an_untrained_bpe(bins: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be trained on token files"):
        adopt_bins(bins, tmp_path / "out", tokenizer="bpe")
    adopt_bins(bins, tmp_path / "out")
    (tmp_path / "out" / "validation.bin").unlink()
    with pytest.raises(DataError, match="is a data folder already"):
        adopt_bins(tmp_path / "out", tmp_path / "again")

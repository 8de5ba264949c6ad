"""Data folders from start to end: what is written, what is refused, and what a failure leaves."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as HubTokenizer

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure import data_folder
from smallgpt.infrastructure.corpora import planning, sources
from smallgpt.infrastructure.corpora.parts import Corpus
from smallgpt.infrastructure.corpora.sources import demo_corpus, text_corpus
from smallgpt.infrastructure.manifest import Manifest
from smallgpt.infrastructure.token_store import open_store
from smallgpt.infrastructure.tokenizing import encoding, merging
from smallgpt.infrastructure.tokenizing.choosing import TokenizerChoice
from smallgpt.infrastructure.tokenizing.making import Options, make_data_folder
from smallgpt.infrastructure.verifying import verify_store
from tests.infrastructure.texts import Texts, write_texts

STORIES = [f"Story {i}. Once upon a time the cat number {i} sat on café {i * i}." for i in range(100)]


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    return path


def of_text(path: Path, out: Path, tokenizer: str = "bpe", vocab_size: int = 300, **options: Any) -> Manifest:
    return make_data_folder(text_corpus([path]), out, Options(TokenizerChoice(tokenizer, vocab_size), **options))


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tokenizer", ["bpe", "bytes"])
def test_text_files_become_a_data_folder(tokenizer: str, stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "data"
    seen: list[str] = []
    options = Options(TokenizerChoice(tokenizer, 300))
    manifest = make_data_folder(text_corpus([stories]), out, options, lambda *told: seen.append(told[2]))
    assert {path.name for path in out.iterdir()} >= {"train.bin", "validation.bin", "tokenizer.json", "dataset.json"}
    assert json.loads((out / "dataset.json").read_text(encoding="utf-8")) == json.loads(manifest.model_dump_json())
    store = verify_store(out)
    assert store.manifest == manifest
    assert manifest.tokenizer is not None
    assert manifest.tokenizer.kind == tokenizer
    assert manifest.source == "stories.txt"
    assert {"tokenizing", "counting n-gram baselines"} <= set(seen)

    made = store.tokenizer
    assert made is not None
    documents: list[str] = []
    for split, facts in manifest.splits.items():
        ids = np.asarray(store.tokens(split)[:])
        assert facts.sha256 == hashlib.sha256((out / facts.files[0].name).read_bytes()).hexdigest()
        assert len(ids) == facts.tokens
        assert ids[-1] == made.end_of_text
        texts = made.decode(ids.tolist()).split("<|endoftext|>")[:-1]
        assert len(texts) == facts.documents
        assert sum(len(text.encode()) for text in texts) == facts.text_bytes
        assert max(len(made.encode(text)) for text in texts) == facts.longest_document
        assert facts.highest_id == ids.max()
        assert np.load(out / f"{split}.starts.npy").tolist() == [0, *(np.flatnonzero(ids == ids[-1])[:-1] + 1)]
        documents += texts
    assert sorted(documents) == sorted(STORIES)
    hub = HubTokenizer.from_file(str(out / "tokenizer.json"))
    assert hub.encode(STORIES[0]).ids == made.encode(STORIES[0])


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of some documents, encoded and merged a few at a time."""
    monkeypatch.setattr(planning, "PART_BYTES", 700)
    monkeypatch.setattr(encoding, "CHARACTERS_AT_ONCE", 100)
    monkeypatch.setattr(merging, "TOKENS_AT_ONCE", 100)


def test_neither_parts_nor_workers_change_the_bytes(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_text(stories, tmp_path / "one")
    whole = everything_in(tmp_path / "one")
    monkeypatch.setattr(planning, "PART_BYTES", 700)
    monkeypatch.setattr(encoding, "CHARACTERS_AT_ONCE", 100)
    monkeypatch.setattr(merging, "TOKENS_AT_ONCE", 100)
    assert len(text_corpus([stories]).train) > 5
    for workers in (1, 2):
        of_text(stories, tmp_path / f"by-{workers}", workers=workers)
        assert everything_in(tmp_path / f"by-{workers}") == whole


@pytest.mark.usefixtures("small_parts")
def test_the_first_bad_part_is_told_however_many_workers_there_are(tmp_path: Path) -> None:
    texts = [json.dumps({"text": story}) for story in STORIES]
    texts[30] = texts[70] = "{"
    (tmp_path / "stories.jsonl").write_text("\n".join(texts))
    (tmp_path / "held-out.txt").write_text(STORIES[0])
    held_out = text_corpus([tmp_path / "held-out.txt"]).train
    corpus = Corpus("test", text_corpus([tmp_path / "stories.jsonl"]).train, held_out)
    for workers in (1, 3):
        with pytest.raises(DataError, match=r"stories\.jsonl, line 31: not JSON") as caught:
            make_data_folder(corpus, tmp_path / f"by-{workers}", Options(TokenizerChoice("bytes"), workers=workers))
        assert "finished parts are kept; the same command goes on" in caught.value.__notes__[0]


@pytest.mark.usefixtures("small_parts")
def test_finished_parts_are_not_encoded_again(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_text(stories, tmp_path / "whole", "bytes")
    done: list[str] = []
    original = encoding.encode_part

    def until_the_third(job: encoding.Job, part_job: encoding.PartJob, tell: encoding.Tell) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(part_job.key)
        return original(job, part_job, tell)

    monkeypatch.setattr("smallgpt.infrastructure.tokenizing.workers.encode_part", until_the_third)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as caught:
        of_text(stories, out, "bytes")
    assert caught.value.__notes__ == ["3 finished parts are kept; the same command goes on from there"]
    assert not out.exists()
    damaged = tmp_path / ".out.draft" / f"{done[0]}.train.ids"
    damaged.write_bytes(b"\0" + damaged.read_bytes()[1:])

    def the_others(job: encoding.Job, part_job: encoding.PartJob, tell: encoding.Tell) -> Any:
        assert part_job.key not in done[1:], "these were finished"
        return original(job, part_job, tell)

    monkeypatch.setattr("smallgpt.infrastructure.tokenizing.workers.encode_part", the_others)
    of_text(stories, out, "bytes")
    assert everything_in(out) == everything_in(tmp_path / "whole")
    assert not (tmp_path / ".out.draft").exists()


@pytest.mark.usefixtures("small_parts")
def test_files_that_are_added_or_mended_are_all_that_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stories"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text("\n<|endoftext|>\n".join(STORIES[25 * number : 25 * number + 25]))
    (folder / "3.txt").write_bytes(b"caf\xe9 " * 300)
    held_out = (Texts(tuple(STORIES[:3])),)
    with pytest.raises(DataError, match=r"3\.txt: byte 0xE9"):
        of_parts(folder, held_out, tmp_path / "out")
    kept = set((tmp_path / ".out.draft").glob("*.part.json"))
    assert len(kept) > 5

    (folder / "3.txt").write_text("\n<|endoftext|>\n".join(STORIES[75:]))
    monkeypatch.setattr("smallgpt.infrastructure.tokenizing.making._merged", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        of_parts(folder, held_out, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(planning, "PART_BYTES", 700)
    times = {path: path.stat().st_mtime_ns for path in kept}
    of_parts(folder, held_out, tmp_path / "whole")
    assert times == {path: path.stat().st_mtime_ns for path in kept}
    of_parts(folder, held_out, tmp_path / "out")
    assert everything_in(tmp_path / "out") == everything_in(tmp_path / "whole")


def of_parts(folder: Path, held_out: tuple[Texts, ...], out: Path) -> None:
    corpus = Corpus("test", text_corpus([folder]).train, held_out)
    make_data_folder(corpus, out, Options(TokenizerChoice("bytes")))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_folder_that_was_taking_its_place_is_not_made_again(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after everything was done: before, between and after the two renames."""
    out, draft = tmp_path / "out", tmp_path / ".out.draft"
    of_text(stories, out, "bytes")
    old = everything_in(out)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smallgpt.infrastructure.tokenizing.making.take_place", killed)
    with pytest.raises(KeyboardInterrupt):
        of_text(stories, out, overwrite=True)
    monkeypatch.undo()
    assert (draft / "done").exists()
    assert everything_in(out) == old
    out.rename(draft / "replaced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smallgpt.infrastructure.tokenizing.workers.encode_part", killed)  # nothing is left to do
        of_text(stories, out, overwrite=True)
    assert verify_store(out).vocab_size == 300

    draft.mkdir()
    for name in ("lock", "done", "0.part.json"):
        (draft / name).write_text("")
    with pytest.raises(DataError, match="exists already"):
        of_text(stories, out)
    assert not draft.exists()


def test_another_share_held_out_is_another_tokenizer(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_text(stories, tmp_path / "whole", validation_share=0.5)
    monkeypatch.setattr("smallgpt.infrastructure.tokenizing.making._merged", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        of_text(stories, tmp_path / "out")
    monkeypatch.undo()
    of_text(stories, tmp_path / "out", validation_share=0.5)
    assert everything_in(tmp_path / "out") == everything_in(tmp_path / "whole")


def test_a_worker_takes_nothing_from_the_current_folder_and_its_death_is_told(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 700)
    (tmp_path / "random.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    of_text(stories, tmp_path / "out", "bytes", workers=2)
    monkeypatch.setattr("smallgpt.infrastructure.tokenizing.workers.WORKER", "raise SystemExit(7)")
    with pytest.raises(DataError, match=r"stories\.txt.*: the process that read it ended with exit code 7"):
        of_text(stories, tmp_path / "other", "bytes", workers=2)


def test_two_at_once_on_one_folder(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def meanwhile(*_: Any) -> None:
        with pytest.raises(DataError, match="out: another process is preparing this folder"):
            of_text(stories, out, "bytes")

    monkeypatch.setattr("smallgpt.infrastructure.tokenizing.making._check_size", meanwhile)
    of_text(stories, out, "bytes")
    verify_store(out)


def test_large_corpora_are_sharded(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_text(stories, tmp_path / "one", "bytes")
    monkeypatch.setattr(merging, "SHARD_TOKENS", 2000)
    monkeypatch.setattr(merging, "TOKENS_AT_ONCE", 300)
    manifest = of_text(stories, tmp_path / "many", "bytes")
    files = manifest.splits["train"].files
    assert [file.name for file in files] == [f"train-{number:05}.bin" for number in range(len(files))]
    assert len(files) > 2
    assert all(file.tokens <= 2000 for file in files)
    one = (tmp_path / "one" / "train.bin").read_bytes()
    assert b"".join((tmp_path / "many" / file.name).read_bytes() for file in files) == one
    for name in ("train.starts.npy", "validation.bin", "tokenizer.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_literal_control_text_in_a_document_stays_text(tmp_path: Path) -> None:
    texts = [f"{text} <|endoftext|> more" for text in STORIES]
    manifest = write_texts(texts, texts[:3], tmp_path / "out")
    ids = open_store(tmp_path / "out").tokens("train")[:]
    assert int((ids == 256).sum()) == manifest.splits["train"].documents == len(texts)


def test_ids_beyond_16_bits_take_32(tmp_path: Path) -> None:
    assert data_folder.smallest_dtype(65_536) == "uint16"
    assert data_folder.smallest_dtype(65_537) == "uint32"


def test_baselines_are_counted_on_a_bounded_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_folder, "FITTED_TOKENS", 500)
    manifest = write_texts(STORIES, STORIES[:5], tmp_path / "out")
    assert manifest.baselines is not None
    assert manifest.baselines["fitted_tokens"] == 500


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"a", b"\xef\xbb\xbf", b"short text\n"])
def test_too_little_text_is_refused_and_leaves_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"white space|too few to learn from"):
        of_text(tmp_path / "tiny.txt", tmp_path / "out", vocab_size=257)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.txt"]


def test_an_existing_folder_is_kept_unless_told(stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    of_text(stories, out, "bytes")
    before = everything_in(out)
    with pytest.raises(DataError, match=r"out exists already; .*--overwrite"):
        of_text(stories, out)
    assert everything_in(out) == before
    of_text(stories, out, overwrite=True)
    assert verify_store(out).vocab_size == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "stories.txt"]


def test_overwriting_replaces_data_folders_only(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for out in (tmp_path / "thesis", stories):
        before = everything_in(tmp_path)
        with pytest.raises(DataError, match="not a data folder and will not be replaced"):
            of_text(stories, out, overwrite=True)
        assert everything_in(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_the_data_as_it_was(
    overwrite: bool, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if overwrite:
        of_text(stories, out, "bytes")
    before = everything_in(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(encoding._Stream, "flush", full)
    with pytest.raises(DataError, match=r"out: cannot be written \(No space left on device\); free some space"):
        of_text(stories, out, "bytes", overwrite=overwrite)
    assert everything_in(tmp_path) == before
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


@pytest.mark.usefixtures("small_parts")
def test_a_disk_that_fills_up_later_keeps_what_is_done(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [encoding.encode_part] * 2

    def full(*words: Any) -> Any:
        if not parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return parts.pop()(*words)

    monkeypatch.setattr("smallgpt.infrastructure.tokenizing.workers.encode_part", full)
    with pytest.raises(DataError, match="free some space") as caught:
        of_text(stories, tmp_path / "out", "bytes")
    assert caught.value.__notes__ == ["2 finished parts are kept; the same command goes on from there"]


def test_a_place_that_cannot_be_written(stories: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be written \(Not a directory\); choose another --out"):
        of_text(stories, stories / "inside" / "out", "bytes")


def test_an_interruption_before_anything_is_done_leaves_nothing(tmp_path: Path) -> None:
    corpus = Corpus("test", (Texts(tuple(STORIES), interrupted=True),), (Texts(tuple(STORIES)),))
    with pytest.raises(KeyboardInterrupt):
        make_data_folder(corpus, tmp_path / "out", Options(TokenizerChoice("bytes")))
    assert list(tmp_path.iterdir()) == []


def test_a_ten_megabyte_line_is_split_and_written(tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("the cat sat. " * 800_000)
    manifest = of_text(tmp_path / "line.txt", tmp_path / "out")
    train, validation = manifest.splits["train"], manifest.splits["validation"]
    assert (train.documents, validation.documents) == (1, 1)
    assert (train.text_bytes or 0) + (validation.text_bytes or 0) == 13 * 800_000
    assert validation.text_bytes == pytest.approx(0.05 * 13 * 800_000, rel=0.01)


def test_a_tokenizer_can_come_from_a_file(stories: Path, tmp_path: Path) -> None:
    first = of_text(stories, tmp_path / "a")
    second = of_text(stories, tmp_path / "b", str(tmp_path / "a" / "tokenizer.json"))
    assert second.tokenizer == first.tokenizer
    with pytest.raises(ConfigError, match="tokenizer 'sentencepiece' is unknown: gpt2, bpe, bytes"):
        of_text(stories, tmp_path / "c", "sentencepiece")


def test_the_demo_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_both", lambda: (STORIES[:90], STORIES[90:]))
    manifest = make_data_folder(demo_corpus(), tmp_path / "out", Options(TokenizerChoice("bpe", 300)))
    assert (manifest.source, manifest.splits["train"].documents, manifest.vocab_size) == ("demo", 90, 300)

"""Documents from files and from datasets, what is held out, and one clear line for every unusable input."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.corpora.hub import hub_documents
from smallgpt.infrastructure.corpora.local_text import LocalText, read_documents
from smallgpt.infrastructure.corpora.splitting import split_documents

SHARED_STORIES = Path(__file__).parents[3] / "shared" / "data" / "tinystories"
STORIES = [f"Story {i}. The cat sat.\nThen it ran." for i in range(40)]


def write_parquet(path: Path, texts: list[str | None], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({column: texts}), path)
    return path


def zstd(content: bytes) -> bytes:
    compressed: bytes = pyarrow.compress(content, "zstd", asbytes=True)
    return compressed


def documents(path: Path, **options: str) -> list[str]:
    return list(read_documents([path], **options))


# --- local files


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_documents(kind: str, compression: str, tmp_path: Path) -> None:
    match kind:
        case ".txt":
            content = "\n<|endoftext|>\n".join(STORIES).encode()
        case ".jsonl":
            content = "\n".join(json.dumps({"id": 1, "text": text}) for text in STORIES).encode()
        case _:
            content = write_parquet(tmp_path / "plain", list(STORIES)).read_bytes()
    compressors: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
    path = tmp_path / f"stories{kind}{compression}"
    path.write_bytes(compressors[compression](content))
    assert documents(path) == STORIES


def test_folders_are_searched_in_order_and_files_read_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.TXT").write_text("first")
    (tmp_path / "sub" / "c.jsonl").write_text('{"text": "third"}')
    (tmp_path / "notes.md").write_text("not asked for")
    texts = read_documents([tmp_path, tmp_path / "b.txt"])
    assert list(texts) == list(texts) == ["first", "second", "third"]


def test_a_file_without_separators_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo says <|endoftext|> inline\n")
    assert documents(tmp_path / "a.txt") == ["one\n\ntwo says <|endoftext|> inline"]


@pytest.mark.parametrize(("separator", "content"), [("---", "a\nb\n---\n\n--- \nc"), ("", "a\nb\n\n \n\nc\n")])
def test_the_separator_can_be_chosen(separator: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(content)
    assert documents(tmp_path / "a.txt", separator=separator) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("é one\ntwo".encode("utf-8-sig"), {}),
        ("é one\r\ntwo\r\n".encode(), {}),
        ("é one\rtwo".encode(), {}),
        ("é one\ntwo".encode("utf-16"), {}),
        (b"\xfe\xff" + "é one\ntwo".encode("utf-16-be"), {}),
        ("é one\ntwo".encode("utf-32"), {}),
        ("é one\ntwo".encode("utf-16-le"), {"encoding": "utf-16-le"}),
        ("é one\ntwo".encode("latin-1"), {"encoding": "latin-1"}),
        ("é one\ntwo".encode("utf-8-sig"), {"encoding": "utf-8"}),
    ],
)
def test_marks_line_ends_and_encodings(content: bytes, options: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert documents(tmp_path / "a.txt", **options) == ["é one\ntwo"]


def test_the_offset_of_a_bad_byte_is_exact_far_into_any_file(tmp_path: Path) -> None:
    content = "é".encode() * 150_001 + b"\xe9 caf\xe9"
    for name, stored in {"a.txt": content, "a.txt.gz": gzip.compress(content), "a.txt.zst": zstd(content)}.items():
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(DataError, match=r"0xE9 at offset 300002 is not utf-8; .* --encoding latin-1"):
            documents(tmp_path / name)


BAD_FILES = {
    "bom-less.txt": ("plain English text, long enough".encode("utf-16-le"), r"UTF-16.*--encoding utf-16-le"),
    "big-end.txt": ("plain English text, long enough".encode("utf-16-be"), r"--encoding utf-16-be"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0\x08", r"NUL byte at offset 8: a binary file"),
    "late-nul.txt": (b"line\n" * 20_000 + b"a\0b\n", r"line 20001: a NUL"),
    "latin.txt": (b"caf\xe9", r"byte 0xE9 at offset 3 is not utf-8"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', r"broken\.jsonl, line 2: not JSON .*'\{\"text\":'"),
    "list.jsonl": (b"[1]\n", r"line 1: not a JSON object: '\[1\]'"),
    "other.jsonl": (b'\n{"story": "a", "id": 1}\n', r"line 2: no field 'text', only story, id; .*--field"),
    "null.jsonl": (b'{"text": null}\n', r"line 1: 'text' is null, not text"),
    "number.jsonl": (b'{"text": 3}\n', r"'text' is 3, not text"),
    "deep.jsonl": (b"[" * 100_000, r"line 1: not JSON"),
    "broken.parquet": (b"PAR1 no", r"broken\.parquet: not a sound Parquet file"),
    "cut.txt.gz": (gzip.compress(b"text " * 999)[:-9], r"cut\.txt\.gz: damaged"),
    "not.txt.gz": (b"plain", r"damaged or not \.gz data"),
    "not.txt.zst": (b"plain", r"damaged or not \.zst data"),
    "cut.jsonl.zst": (zstd(b'{"text": "a"}\n' * 9)[:-4], r"cut\.jsonl\.zst: damaged"),
    "table.csv": (b"a,b", r"table\.csv: not one of \.txt, \.jsonl, \.parquet.*rename"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_an_unusable_file_gets_one_clear_line(name: str, tmp_path: Path) -> None:
    content, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        documents(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_parquet_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["x", None], column="story")
    with pytest.raises(DataError, match=r"no column 'text', only story; choose one with --field"):
        documents(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 2: 'story' is null"):
        documents(tmp_path / "a.parquet", field="story")


def test_missing_paths_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.txt: no such file"):
        read_documents([tmp_path / "gone.txt"])
    with pytest.raises(DataError, match=r"no \.txt, \.jsonl, \.parquet files"):
        read_documents([tmp_path])
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match="encoding 'klingon' is unknown"):
        documents(tmp_path / "a.txt", encoding="klingon")
    vanished = LocalText((tmp_path / "b.txt",))
    with pytest.raises(DataError, match=r"b\.txt: cannot be read \(No such file"):
        list(vanished)


def test_surrogates_in_json_become_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b\\ud83d\\ude42"}')
    assert documents(tmp_path / "a.jsonl") == ["a\ufffdb🙂"]


# --- held-out documents


def test_the_share_is_held_out_and_copies_stay_together() -> None:
    texts = [f"document {i % 4000} " + "word " * 20 for i in range(6000)]
    train, validation = split_documents(texts, 0.05)
    held_out = list(validation)
    assert 0.03 < len(held_out) / len(texts) < 0.07
    assert not set(held_out) & set(train)
    assert len(held_out) + len(list(train)) == len(texts)
    assert held_out == list(split_documents(texts[::-1], 0.05)[1])[::-1]  # decided by the text alone


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.text(alphabet="ab .\n", min_size=1, max_size=60), min_size=1, max_size=30), st.floats(0.02, 0.3))
def test_small_corpora_lose_nothing_and_never_cross(texts: list[str], share: float) -> None:
    texts = [text for text in texts if text.strip()]
    if sum(map(len, set(texts))) < 200:
        return
    train, validation = split_documents(texts, share)
    kept, held_out = list(train), list(validation)
    assert kept
    assert held_out
    assert sorted("".join(kept + held_out).replace(" ", "").replace("\n", "")) == sorted(
        "".join(texts).replace(" ", "").replace("\n", "")
    )
    assert not set(kept) & set(held_out) or len(kept + held_out) > len(texts)


@pytest.mark.parametrize(
    ("unit", "end"),
    [("A line.\nA second.\n\n", "\n\n"), ("One line after another\n", "\n"), ("A sentence. ", ". "), ("word ", " ")],
)
def test_one_long_document_is_cut_at_a_boundary(unit: str, end: str) -> None:
    text = unit * 500
    train, validation = (list(side) for side in split_documents([text]))
    assert (len(train), len(validation)) == (1, 1)
    assert train[0] + validation[0] == text
    assert train[0].endswith(end)
    assert 0.04 < len(validation[0]) / len(text) < 0.11


def test_a_book_among_notes_is_cut_rather_than_held_out() -> None:
    book = "It was a long story. " * 2000
    train, validation = (list(side) for side in split_documents([book, "short note", "another note", book]))
    assert sum(map(len, validation)) / (2 * len(book)) == pytest.approx(0.05, abs=0.02)
    assert {"short note", "another note"} <= set(train)


def test_no_text_and_impossible_shares() -> None:
    with pytest.raises(DataError, match="only white space"):
        split_documents(["", " \n"])
    for share in (0.0, 1.0, -1.0, 2.0):
        with pytest.raises(ConfigError, match="validation_share"):
            split_documents(["text"], share)


# --- datasets


@pytest.fixture
def quiet_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real `datasets` code, its cache in a folder of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_a_folder_in_hub_layout(quiet_hub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_parquet(quiet_hub / "set" / "data" / "train-00000-of-00001.parquet", [*STORIES, None, " "])
    write_parquet(quiet_hub / "set" / "data" / "validation-00000-of-00001.parquet", ["held out"])
    train, validation = hub_documents(str(quiet_hub / "set"))
    assert list(train) == list(train) == STORIES
    assert list(validation) == ["held out"]
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in quiet_hub.iterdir()) == ["cache", "set"]


def test_real_stories_in_hub_layout(quiet_hub: Path) -> None:
    if not SHARED_STORIES.is_dir():
        pytest.skip("the stories are not in ../shared")
    train, validation = hub_documents(str(SHARED_STORIES))
    assert (sum(1 for _ in train), sum(1 for _ in validation)) == (2817, 300)


def test_without_a_validation_split_some_documents_are_held_out(quiet_hub: Path) -> None:
    write_parquet(quiet_hub / "set" / "train.parquet", list(STORIES))
    train, validation = hub_documents(str(quiet_hub / "set"), validation_share=0.1)
    assert sorted([*train, *validation]) == sorted(STORIES)
    assert list(validation)


def test_a_test_split_serves_and_splits_without_training_do_not(quiet_hub: Path) -> None:
    write_parquet(quiet_hub / "set" / "train.parquet", list(STORIES))
    write_parquet(quiet_hub / "set" / "test.parquet", ["tested"])
    assert list(hub_documents(str(quiet_hub / "set"))[1]) == ["tested"]
    write_parquet(quiet_hub / "other" / "test.parquet", ["tested"])
    write_parquet(quiet_hub / "other" / "validation.parquet", ["valid"])
    with pytest.raises(DataError, match="no split called train, only"):
        hub_documents(str(quiet_hub / "other"))


def test_columns_of_a_dataset(quiet_hub: Path) -> None:
    table = pyarrow.table({"story": STORIES, "stars": list(range(40))})
    (quiet_hub / "set").mkdir()
    pyarrow.parquet.write_table(table, quiet_hub / "set" / "train.parquet")
    with pytest.raises(DataError, match=r"no column 'text', only story, stars; choose one with --column"):
        hub_documents(str(quiet_hub / "set"))
    with pytest.raises(DataError, match=r"column 'stars' holds int64, not text"):
        hub_documents(str(quiet_hub / "set"), column="stars")


def test_a_dataset_that_cannot_be_had(quiet_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such dataset on the hub, and no folder"):
        hub_documents(str(quiet_hub / "nothing-here"))
    (quiet_hub / "broken").mkdir()
    (quiet_hub / "broken" / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="the dataset cannot be loaded"):
        hub_documents(str(quiet_hub / "broken"))
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot be reached .*`smallgpt prepare demo`.*HF_HUB_OFFLINE.*HF_ENDPOINT"):
        hub_documents("roneneldan/TinyStories")

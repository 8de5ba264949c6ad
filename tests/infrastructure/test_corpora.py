"""Documents from files and from datasets, what is held out, and one clear line for every unusable input."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.corpora.parts import Documents
from smallgpt.infrastructure.corpora.planning import ReadOptions, plan_files

STORIES = [f"Story {i}. The cat sat.\nThen it ran." for i in range(40)]


def write_parquet(path: Path, texts: list[str | None], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({column: texts}), path)
    return path


def zstd(content: bytes) -> bytes:
    compressed: bytes = pyarrow.compress(content, "zstd", asbytes=True)
    return compressed


def documents(path: Path, **options: Any) -> list[str]:
    return list(Documents(plan_files([path], ReadOptions(**options))))


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
    texts = Documents(plan_files([tmp_path, tmp_path / "b.txt"]))
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
        plan_files([tmp_path / "gone.txt"])
    with pytest.raises(DataError, match=r"no \.txt, \.jsonl, \.parquet files"):
        plan_files([tmp_path])
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match="encoding 'klingon' is unknown"):
        documents(tmp_path / "a.txt", encoding="klingon")
    (tmp_path / "b.txt").write_text("text")
    vanished = Documents(plan_files([tmp_path / "b.txt"]))
    (tmp_path / "b.txt").unlink()
    with pytest.raises(DataError, match=r"b\.txt: cannot be read \(No such file"):
        list(vanished)


def test_surrogates_in_json_become_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b\\ud83d\\ude42"}')
    assert documents(tmp_path / "a.jsonl") == ["a\ufffdb🙂"]

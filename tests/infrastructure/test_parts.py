"""Large files cut into parts, small ones joined, and files that would do harm."""

import gzip
import json
import os
import pickle
import random
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.corpora import jsonl_parts, opening, parquet_parts, planning, text_parts
from smallgpt.infrastructure.corpora.parts import Documents, Part
from smallgpt.infrastructure.corpora.planning import ReadOptions, SmallFiles, plan_files

PICK = random.Random(0)
TEXTS = [
    f"Story {i}: "
    + "".join(PICK.choice(["Zoë sat. ", "a cat ran.\n", "日本 ", "🙂\n\n", "one two three "]) for _ in range(i % 40))
    for i in range(400)
]
TEXTS = [text.strip() for text in TEXTS]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 5_000)
    monkeypatch.setattr(text_parts, "BLOCK_CHARACTERS", 3_000)


def read(path: Path, **options: Any) -> tuple[tuple[Part, ...], list[str]]:
    parts = plan_files([path], ReadOptions(**options))
    return parts, [text for part in pickle.loads(pickle.dumps(parts)) for text in part.documents()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", ["<|endoftext|>", "---"])
def test_text_is_cut_between_documents(encoding: str, line_end: str, separator: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(f"\n{separator} \n".join(TEXTS).replace("\n", line_end).encode(encoding))
    parts, texts = read(path, separator=separator)
    assert texts == TEXTS
    assert sum(part.size for part in parts) == path.stat().st_size
    assert (len(parts) > 5) == encoding.startswith("utf-8")  # the others are read as a stream
    assert all(4_000 < part.size < 12_000 for part in parts[:-1])


def test_blank_lines_and_other_encodings_separate_too(tmp_path: Path) -> None:
    texts = [f"café {i}\nsecond line" for i in range(2000)]
    (tmp_path / "a.txt").write_text("\n \n".join(texts), encoding="latin-1")
    parts, found = read(tmp_path / "a.txt", separator="", encoding="latin-1")
    assert found == texts
    assert len(parts) > 5


def test_an_encoding_with_a_byte_order_mark_is_cut_between_documents_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n---\n".join(TEXTS), encoding="utf-8-sig")
    parts, texts = read(tmp_path / "a.txt", separator="---", encoding="utf-8-sig")
    assert texts == TEXTS
    assert len(parts) > 5


@pytest.mark.parametrize(("unit", "kept"), [("word and word\n", "\n"), ("word ", " "), ("é", "é"), ("日", "日")])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_document_longer_than_parts_is_cut_where_it_hurts_least(
    unit: str, kept: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    text = unit * (60_000 // len(unit))
    path = tmp_path / ("a.txt" if compress is bytes else "a.txt.gz")
    path.write_bytes(compress(text.encode()))
    _, found = read(path)
    assert "".join(found).replace("\n", "") == text.replace("\n", "")
    assert len(found) > 5
    assert all(piece.endswith(kept.strip() or " ") or kept == "\n" for piece in found)
    assert max(map(len, found)) <= 12_000


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_lines_are_cut_between_lines(encoding: str, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=number % 2 == 0) for number, text in enumerate(TEXTS)]
    lines[7] = json.dumps({"text": "long " * 5000})
    path = tmp_path / "a.jsonl"
    path.write_bytes("\r\n".join(lines).encode(encoding))
    parts, found = read(path)
    assert found == [*TEXTS[:7], "long " * 5000, *TEXTS[8:]]
    assert (len(parts) > 5) == encoding.startswith("utf-8")

    lines[350] = "{"
    path.write_bytes("\n".join(lines).encode(encoding))
    with pytest.raises(DataError, match=r"a\.jsonl, line 351: not JSON"):
        read(path)


def test_a_line_too_long_to_be_a_document_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_parts, "LONGEST_LINE", 1000)
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n' + json.dumps({"text": "x" * 2000}))
    with pytest.raises(DataError, match=r"line 2: a line of more than 1,000 characters"):
        read(tmp_path / "a.jsonl")


def test_parquet_is_cut_between_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": range(400), "text": TEXTS}), path, row_group_size=20)
    parts, found = read(path)
    assert found == TEXTS
    assert len(parts) > 5
    broken = [text.encode() for text in TEXTS]
    broken[333] = b"caf\xe9"
    table = pyarrow.table({"text": pyarrow.array(broken, pyarrow.binary()).view(pyarrow.string())})
    pyarrow.parquet.write_table(table, path, row_group_size=20)
    with pytest.raises(DataError, match=r"a\.parquet, row 334: 'text' is not UTF-8 \(.*0xe9"):
        read(path)


def test_a_nested_column_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [{"a": 1}, {"a": 2}], "story": ["x", "y"]}), path)
    with pytest.raises(DataError, match=r"column 'text' holds struct<a: int64>, not text; text is in story"):
        read(path)


def test_tiny_files_share_parts(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number:04}.txt").write_text(text, encoding="utf-8")
    parts, found = read(tmp_path)
    assert found == TEXTS
    assert len(parts) < 40
    assert all(isinstance(part, SmallFiles) for part in parts[:-1])
    assert all(before.size + after.size > 5_000 for before, after in pairwise(parts))


def test_an_archive_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = b"0" * 5_000_000
    for name, content in {
        "a.txt.gz": gzip.compress(bomb),
        "a.jsonl.zst": pyarrow.compress(bomb, "zstd", asbytes=True),
    }.items():
        (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(opening, "EXPANSION_FLOOR", 100_000)
        with pytest.raises(DataError, match="expands to more than 300 times its size, as an archive bomb does"):
            read(tmp_path / name)
        monkeypatch.setattr(opening, "EXPANSION_FLOOR", 10_000_000)
        if name.endswith(".txt.gz"):
            assert sum(map(len, read(tmp_path / name)[1])) == len(bomb)


def test_links_that_lead_back_up_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.txt").write_text("once")
    (tmp_path / "inside" / "up").symlink_to(tmp_path)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself.txt").symlink_to(tmp_path / "itself.txt")
    assert read(tmp_path)[1] == ["once"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match=r"closed: cannot be read \(Permission denied\)"):
        plan_files([tmp_path])


def test_mixed_encodings_name_the_file_that_is_another(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("café", encoding="utf-8")
    (tmp_path / "b.txt").write_text("café", encoding="utf-16")
    (tmp_path / "c.txt").write_text("café", encoding="latin-1")
    with pytest.raises(DataError, match=r"c\.txt: byte 0xE9 at offset 3 is not utf-8; .*convert this file"):
        read(tmp_path)
    (tmp_path / "c.txt").unlink()
    assert read(tmp_path)[1] == ["café", "café"]


def test_a_changed_file_is_another_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = plan_files([path])
    assert plan_files([path]) == before
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert plan_files([path]) != before
    assert list(Documents(plan_files([path]))) == ["two"]


def test_a_long_line_is_refused_in_a_large_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LONGEST_LINE", 20_000)
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n' * 200 + json.dumps({"text": "x" * 90_000}))
    with pytest.raises(DataError, match=r"a\.jsonl, from byte 5,000 on: a line of more than"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_blocks_of_a_stream_do_not_end_documents(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    texts = [f"paragraph {i} " + "of some words\n" * (i % 7) + "and its end" for i in range(300)]
    path = tmp_path / ("a.txt" if compress is bytes else "a.txt.gz")
    path.write_bytes(compress("\n\n".join(texts).encode()))
    assert read(path, separator="")[1] == texts


def test_a_struct_before_the_text_does_not_confuse_its_size(tmp_path: Path) -> None:
    table = pyarrow.table({"meta": [{"a": 1, "b": "x"}] * 400, "text": TEXTS})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    parts, found = read(tmp_path / "a.parquet")
    assert found == TEXTS
    assert len(parts) > 5


def test_long_rows_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_parts, "BYTES_AT_ONCE", 50_000)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["long " * 2_000] * 40}), tmp_path / "a.parquet")
    (part,) = plan_files([tmp_path / "a.parquet"])
    assert isinstance(part, parquet_parts.ParquetPart)
    with parquet_parts.opened(tmp_path / "a.parquet") as file:
        assert part._rows_at_once(file) in (4, 5)
    assert len(list(part.documents())) == 40


@pytest.mark.parametrize("separator", ["", " ", "---"])
@given(text=st.text(alphabet="a- \t\r\n\x0b\u2028", max_size=40))
def test_a_separator_line_may_have_white_space_around_it(separator: str, text: str) -> None:
    word = re.escape(separator.strip())
    whole = re.compile(rf"^[^\S\n]*{word}[^\S\n]*$", re.MULTILINE)
    in_bytes = re.compile(rb"^[ \t]*" + word.encode() + rb"[ \t\r]*\n", re.MULTILINE)
    found = text_parts._separating(separator).finditer(text)
    assert [each.span() for each in found] == [each.span() for each in whole.finditer(text)]
    borders = planning._border(ReadOptions(separator=separator)).finditer(text.encode())
    assert [each.span() for each in borders] == [each.span() for each in in_bytes.finditer(text.encode())]


def test_a_long_run_of_spaces_takes_no_longer_than_other_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n" + " " * 200_000 + "x\n\nb")
    began = time.monotonic()
    assert read(tmp_path / "a.txt", separator="")[1][-1] == "b"
    border = planning._border(ReadOptions(separator=""))
    assert border.search(b"a\n" + b" " * 200_000 + b"x", 1) is None
    assert time.monotonic() - began < 5  # it was minutes


@pytest.mark.parametrize("encoding", ["hex", "rot13", "undefined", "zlib", "klingon"])
def test_a_codec_that_is_not_of_text_is_no_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match=f"encoding '{encoding}' is unknown; for example utf-8"):
        read(tmp_path / "a.txt", encoding=encoding)


@pytest.mark.parametrize(("encoding", "separator"), [("ascii", "—"), ("latin-1", "日"), (None, "\udc80")])
def test_a_separator_that_the_encoding_has_not(encoding: str | None, separator: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match=f"separator .* cannot be written in {encoding or 'utf-8'}, .* --encoding"):
        read(tmp_path / "a.txt", encoding=encoding, separator=separator)

"""Files of every wrong kind, and data folders that were tampered with."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smallgpt.infrastructure.manifest import read_manifest
from smallgpt.infrastructure.token_store import open_store

Refused = Callable[..., None]
Run = Callable[..., Any]

TEXT = Path("stories.txt")
PREPARE = ["prepare", "text", "x.txt", "--tokenizer", "bytes", "--out", "new"]


# --- texts


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["x.txt", "no text", "give files with text"]),
        (b" \n\n\t ", ["x.txt", "no text", "white space"]),
        (b"a", ["x.txt", "1 bytes of text", "give more text"]),
        (b"plain text\n" * 9 + b"caf\xe9", ["x.txt", "0xE9 at offset 102", "--encoding latin-1"]),
        ("héllo, how are you? ".encode("utf-16-le") * 20, ["x.txt", "UTF-16", "--encoding utf-16-le"]),
        ("hello, how are you? ".encode("utf-16-be") * 20, ["x.txt", "UTF-16", "--encoding utf-16-be"]),
        (b"text with a \0 inside" * 9, ["x.txt", "NUL", "offset 12", "not text"]),
        (b"a line of text\n" * 5000 + b"a \0", ["x.txt, line 5001", "NUL"]),
        (b"\x7fELF" + bytes(range(256)) * 9, ["x.txt", "NUL", "binary"]),
        (b"\x89PNG\r\n\x1a" + bytes(range(1, 256)) * 9, ["x.txt", "0x89 at offset 0"]),
    ],
    ids=["empty", "white", "one", "latin-1", "utf-16-le", "utf-16-be", "nul", "late-nul", "elf", "png"],
)
def test_text_that_is_none(here: Path, refused: Refused, content: bytes, words: list[str]) -> None:
    Path("x.txt").write_bytes(content)
    refused(PREPARE, 3, *words)


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.encode("utf-16"),
    ],
    ids=["byte-order mark", "CRLF", "UTF-16"],
)
def test_text_in_another_guise_is_the_same_text(here: Path, run: Run, encode: Callable[[str], bytes]) -> None:
    Path("x.txt").write_bytes(encode(TEXT.read_text()))
    assert run(*PREPARE).code == 0
    for name in ("train.bin", "validation.bin"):
        assert Path("new", name).read_bytes() == Path("data", name).read_bytes()


def test_ten_megabytes_on_one_line_are_text(here: Path, run: Run) -> None:
    pick = random.Random(0).choice
    Path("x.txt").write_text(" ".join(pick(["the", "cat", "sat", "on", "a", "mat"]) for _ in range(2_900_000)))
    assert Path("x.txt").stat().st_size > 9_500_000
    began = time.perf_counter()
    assert run("prepare", "text", "x.txt", "--tokenizer", "bpe", "--vocab-size", "300", "--out", "new").code == 0
    assert time.perf_counter() - began < 60
    manifest = read_manifest(Path("new"))
    held_out = manifest.splits["validation"].text_bytes or 0
    assert held_out + (manifest.splits["train"].text_bytes or 0) == Path("x.txt").stat().st_size
    assert 0.04 < held_out / 1e7 < 0.06


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_the_name_of_end_of_text_inside_a_text_stays_text(here: Path, run: Run, tokenizer: str) -> None:
    line = "Then she wrote <|endoftext|> and laughed."
    Path("x.txt").write_text("\n<|endoftext|>\n".join([line] * 3 + [f"{line} Day {n}." for n in range(30)]))
    words = ["prepare", "text", "x.txt", "--tokenizer", tokenizer, "--out", "new"]
    assert run(*words, *(["--vocab-size", "300"] if tokenizer == "bpe" else [])).code == 0
    store = open_store(Path("new"))
    tokenizer_in_use = store.tokenizer
    assert tokenizer_in_use is not None
    for split in ("train", "validation"):
        ids = store.tokens(split)[:]
        documents = int((ids == store.end_of_text).sum())
        assert documents == store.documents(split)
        assert tokenizer_in_use.decode(ids.tolist()).count("<|endoftext|>") == 2 * documents


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b'{"body": "x"}\n', ["x.jsonl, line 1", "no field 'text'", "body", "--field"]),
        ("x.jsonl", b'{"text": "x"}\n{oops\n', ["x.jsonl, line 2", "not JSON", "{oops"]),
        ("x.jsonl", b'{"text": null}\n', ["x.jsonl, line 1", "null"]),
        ("x.jsonl", b'["text"]\n', ["x.jsonl, line 1", "not a JSON object"]),
        ("x.jsonl", b"[" * 100_000, ["x.jsonl, line 1", "not JSON"]),
        ("x.parquet", b"PAR1 not really", ["x.parquet", "Parquet"]),
        ("x.txt.gz", b"not gzip", ["x.txt.gz", "damaged"]),
        ("x.jsonl.zst", b"not zstd", ["x.jsonl.zst"]),
        ("x.docx", b"PK\3\4", ["x.docx", ".txt, .jsonl, .parquet"]),
    ],
)
def test_files_that_do_not_hold_what_their_names_say(
    here: Path, refused: Refused, name: str, content: bytes, words: list[str]
) -> None:
    Path(name).write_bytes(content)
    refused(["prepare", "text", name, "--out", "new"], 3, *words)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["prepare", "text", "nope.txt", "--out", "new"], ["nope.txt", "no such file or folder"]),
        (["prepare", "text", "stories.txt", "nope.txt", "--out", "new"], ["nope.txt"]),
        (["prepare", "text", "runs/small/checkpoints", "--out", "new"], ["checkpoints: no .txt", "in this folder"]),
        (["prepare", "text", "stories.txt", "--out", "data"], ["data exists already", "--overwrite"]),
        (["prepare", "text", "stories.txt", "--out", "runs", "--overwrite"], ["runs is not a data folder"]),
        (["prepare", "bins", "nope", "--out", "new"], ["nope", "no train.bin"]),
        (["prepare", "bins", "runs", "--out", "new"], ["runs", "no train.bin"]),
        (["prepare", "hub", "./nope", "--out", "new"], ["./nope", "no folder", "OWNER/NAME"]),
        (["train", "--data", "nope"], ["nope", "no such data folder", "smallgpt prepare"]),
        (["train", "--data", "stories.txt"], ["stories.txt", "not a data folder", "smallgpt prepare text stories.txt"]),
        (["train", "--data", "runs"], ["runs", "no dataset.json"]),
        (["evaluate", "runs/small", "--text", "nope.txt"], ["nope.txt"]),
        (["evaluate", "runs/small", "--data", "runs"], ["runs", "no dataset.json"]),
        (["generate", "runs/small", "--prompt-file", "nope.txt"], ["nope.txt", "No such file", "check the path"]),
    ],
)
def test_files_and_folders_that_are_missing_or_others(
    here: Path, refused: Refused, command: list[str], words: list[str]
) -> None:
    refused(command, 3, *words)


def test_an_empty_text_cannot_be_scored(here: Path, refused: Refused) -> None:
    Path("x.txt").write_text("\n \n")
    refused(["evaluate", "runs/small", "--text", "x.txt"], 3, "no text in x.txt")


def test_a_block_longer_than_the_data(here: Path, refused: Refused) -> None:
    tokens = len(open_store(Path("data")).tokens("validation"))
    command = ["train", "--data", "data", "--out", "runs/new", "--model.block-size=4096"]
    refused(command, 3, f"validation split of data has {tokens} tokens", "4097", "--model.block-size")


# --- token files


def write_bins(folder: Path, train: list[int], validation: list[int]) -> None:
    folder.mkdir()
    np.array(train, dtype="<u2").tofile(folder / "train.bin")
    np.array(validation, dtype="<u2").tofile(folder / "val.bin")


def test_token_files_with_half_a_token(here: Path, refused: Refused) -> None:
    write_bins(Path("bins"), [1, 2, 3] * 100, [1, 2] * 50)
    with Path("bins/train.bin").open("ab") as file:
        file.write(b"\1")
    refused(["prepare", "bins", "bins", "--out", "new"], 3, "train.bin", "601 bytes", "16-bit")
    Path("bins/train.bin").write_bytes(b"")
    refused(["prepare", "bins", "bins", "--out", "new"], 3, "train.bin", "0 bytes")


def test_token_files_with_an_id_that_the_tokenizer_has_not(here: Path, refused: Refused) -> None:
    write_bins(Path("bins"), [1, 2, 300] * 100, [1, 2] * 50)
    words = ["token id 300", "257 ids", "--tokenizer none"]
    refused(["prepare", "bins", "bins", "--tokenizer", "bytes", "--out", "new"], 3, *words)


TRAIN = ["train", "--data", "data", "--out", "runs/new", "--training.max-steps=3"]


@pytest.mark.parametrize("harm", ["odd", "cut", "grown", "gone"])
def test_a_token_file_that_is_not_the_manifests(here: Path, refused: Refused, harm: str) -> None:
    path = Path("data/train.bin")
    content = path.read_bytes()
    match harm:
        case "odd":
            path.write_bytes(content[:-1])
        case "cut":
            path.write_bytes(content[:-200])
        case "grown":
            path.write_bytes(content + b"\1\0")
        case "gone":
            path.unlink()
    said = "No such file" if harm == "gone" else "dataset.json says"
    refused(TRAIN, 3, str(path), said, "prepare the data again")


def changed(document: dict[str, Any], **values: Any) -> str:
    return json.dumps({**document, **values})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda manifest: "{", ["dataset.json", "prepare the data again"]),
        (lambda manifest: changed(manifest, format_version=99), ["dataset.json", "format_version"]),
        (lambda manifest: changed(manifest, dtype="uint8"), ["dataset.json", "dtype"]),
        (lambda manifest: changed(manifest, vocab_size=100), ["train.bin", "the vocabulary ends at 99"]),
        (lambda manifest: changed(manifest, splits={"train": manifest["splits"]["train"]}), ["no split 'validation'"]),
        (
            lambda manifest: changed(manifest, tokenizer={**manifest["tokenizer"], "fingerprint": "0" * 64}),
            ["tokenizer.json", "fingerprint"],
        ),
    ],
    ids=["cut", "version", "dtype", "vocabulary", "split", "tokenizer"],
)
def test_a_manifest_that_does_not_match(
    here: Path, refused: Refused, change: Callable[[dict[str, Any]], str], words: list[str]
) -> None:
    path = Path("data/dataset.json")
    path.write_text(change(json.loads(path.read_text())))
    refused(TRAIN, 3, *words)


@pytest.mark.parametrize("content", [None, "{", '{"model": {"type": "WordPiece"}}'])
def test_a_tokenizer_that_is_gone_or_broken(here: Path, refused: Refused, content: str | None) -> None:
    path = Path("data/tokenizer.json")
    path.unlink()
    if content is not None:
        path.write_text(content)
    refused(TRAIN, 3, "tokenizer.json", "prepare")

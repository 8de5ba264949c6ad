"""A tokenizer file that is not one, and vocabularies that do not fit: one clear line, and everything as it was."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import models

from smallgpt.infrastructure.tokenizers import END_OF_TEXT, Tokenizer

Refused = Callable[..., None]
PREPARE = ["prepare", "text", "stories.txt", "--tokenizer", "x.json", "--out", "new"]
REMEDY = "--tokenizer gpt2, bpe or bytes"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["x.json", "the file is empty", REMEDY]),
        (b'{"model": {"type": "BPE", "vo', ["x.json", "cut short", REMEDY]),
        (b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02", ["x.json", "SentencePiece", REMEDY]),
        (pickle.dumps([1]), ["x.json", "pickle", REMEDY]),
        (HubTokenizer(models.WordPiece({"[UNK]": 0})).to_str().encode(), ["x.json", "WordPiece", REMEDY]),
        (HubTokenizer(models.BPE(byte_fallback=True)).to_str().encode(), ["x.json", "byte fallback", REMEDY]),
        (json.dumps({"hello": 0}).encode(), ["x.json", "'model'", REMEDY]),
    ],
    ids=["empty", "cut", "sentencepiece", "pickle", "wordpiece", "llama", "vocab.json"],
)
def test_what_is_no_tokenizer_of_ours_is_refused(
    here: Path, refused: Refused, content: bytes, words: list[str]
) -> None:
    Path("x.json").write_bytes(content)
    refused(PREPARE, 3, *words)


def test_a_folder_is_no_tokenizer(here: Path, refused: Refused) -> None:
    Path("x.json").mkdir()
    refused(PREPARE, 2, "x.json")


def test_a_vocabulary_larger_than_the_models_is_refused(here: Path, refused: Refused, run: Any) -> None:
    refused(
        ["train", "--data", "data", "--out", "new", "--model.vocab-size=100"],
        3,
        "vocab_size (100)",
        "vocabulary of data (257)",
    )
    vocabulary = {bytes([byte]): byte for byte in range(256)}
    Tokenizer(vocabulary, [], {END_OF_TEXT: 256, **{f"<|{n}|>": 257 + n for n in range(200)}}).save(Path("x.json"))
    assert run(*PREPARE).code == 0
    refused(["evaluate", "runs/small", "--data", "new"], 4, "new", "another tokenizer")
    (checkpoint, *_) = sorted(Path("runs/small/checkpoints").glob("step-*"))
    Path("model").mkdir()
    for name in ("config.json", "model.safetensors"):
        Path("model", name).write_bytes((checkpoint / name).read_bytes())
    Path("model/tokenizer.json").write_bytes(Path("x.json").read_bytes())
    refused(["generate", "model", "--max-new-tokens=3"], 4, "tokenizer.json has 457 ids, the model 384")

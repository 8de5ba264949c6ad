"""`smallgpt prepare tokenizers`: one table, one star, and what it leaves out."""

import json
import random
from pathlib import Path

import pytest
from cyclopts import App

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure import vocabulary_sizes
from smallgpt.infrastructure.tokenizers import Tokenizer
from smallgpt.interfaces.cli.prepare_tokenizers import tokenizers


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Words that give some thousand merges; GPT-2's files are not at hand."""

    def absent() -> Tokenizer:
        raise DataError("its files are not here")

    monkeypatch.setattr(vocabulary_sizes, "gpt2_tokenizer", absent)
    rng = random.Random(0)
    words = ["".join(rng.choices("abdeilmnorstu", k=rng.randint(2, 9))) for _ in range(900)]
    path = tmp_path / "book.txt"
    path.write_text("\n<|endoftext|>\n".join(" ".join(rng.choices(words, k=80)) for _ in range(90)))
    return path


def test_the_table_has_one_star_and_says_what_is_left_out(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers(book, n_embd=64)
    words, err = capsys.readouterr()
    (starred,) = [line for line in words.splitlines() if line.startswith("* bpe")]
    size = int(starred.split()[2].replace(",", ""))
    assert f"--tokenizer bpe --vocab-size {size}" in words
    assert "n_layer 4, n_embd 64, block_size 128" in words
    assert "bytes/token" in words
    assert " bytes " in words
    assert "gpt2 is left out: its files are not here" in err


def test_json_holds_the_table_and_nothing_else(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers(book, n_embd=64, json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["tokenizer"] for row in rows[-2:]] == ["bpe", "bytes"]
    assert sum(row["suggested"] for row in rows) == 1
    for row in rows:
        assert row["parameters_saved"] == (50_257 - row["vocab_size"]) * 64
        assert row["head_parameters"] == row["vocab_size"] * 64


def test_gpt2_is_in_the_table_where_it_is_at_hand(
    book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Path(__file__).parents[3] / "shared" / "tiktoken-cache"
    if not cache.is_dir():
        pytest.skip("the GPT-2 files are not in ../shared")
    monkeypatch.undo()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    tokenizers(book)
    words, err = capsys.readouterr()
    assert "left out" not in err
    assert "gpt2 trimmed" in words


def test_wrong_words_are_refused(book: Path) -> None:
    with pytest.raises(ConfigError, match="name the files"):
        tokenizers()
    with pytest.raises(ConfigError, match="--n-embd is 0"):
        tokenizers(book, n_embd=0)
    with pytest.raises(DataError, match=r"missing\.txt"):
        tokenizers(book.parent / "missing.txt")
    (book.parent / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="no text"):
        tokenizers(book.parent / "empty.txt")


def test_the_command_takes_its_words_from_the_line(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = App(result_action="return_value", exit_on_error=False)
    app.command(tokenizers)
    app(["tokenizers", str(book), "--n-layer", "2", "--n-embd", "32", "--json"])
    assert json.loads(capsys.readouterr().out)

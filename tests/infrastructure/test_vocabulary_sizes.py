"""Sizes of a vocabulary: exact without encoding again, least work a byte among what can be learned, and repeatable."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import DataError
from smallgpt.domain.flops import flops_per_token
from smallgpt.infrastructure import vocabulary_sizes
from smallgpt.infrastructure.bpe_training import train_bpe
from smallgpt.infrastructure.tokenizers import Tokenizer
from smallgpt.infrastructure.vocabulary_sizes import compare_tokenizers, count_ids, facts, suggest_vocab_size

Stories = Callable[..., list[str]]
MODEL = GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=32)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Some thousand made-up words whose frequencies fall as in a language."""
    rng = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(3000)]
    shares = [1 / (rank + 3) for rank in range(len(words))]
    return [" ".join(rng.choices(words, shares, k=120)) for _ in range(300)]


def test_a_size_counts_what_a_tokenizer_of_that_size_gives(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_sizes, "SIZES", (260, 300, 512, 1000))
    table = suggest_vocab_size(texts, MODEL, specials=["<|user|>"])
    assert [row.vocab_size for row in table.rows] == [260, 300, 512, 1000]
    for row in table.rows:
        apart = train_bpe(texts, row.vocab_size, specials=["<|user|>"])
        ids, lengths = apart.encode_documents(texts)
        counts = np.bincount(ids, minlength=apart.vocab_size)
        assert row == facts("bpe", counts, apart.byte_lengths(), MODEL)
        assert row.ids_used == len(set(ids.tolist()))
        assert row.bytes_per_token == pytest.approx(sum(map(len, texts)) / lengths.sum())
        assert row.head_parameters == row.vocab_size * 64
        work = flops_per_token(MODEL.model_copy(update={"vocab_size": row.vocab_size}))
        assert row.head_share == pytest.approx(6 * row.head_parameters / work)
        assert row.flops_per_byte == pytest.approx(work / row.bytes_per_token)


def test_the_suggestion_is_repeatable_and_the_tokenizer_is_that_of_the_size(texts: list[str]) -> None:
    table = suggest_vocab_size(texts, MODEL)
    assert table.tokenizer.fingerprint == train_bpe(texts, table.chosen).fingerprint
    assert suggest_vocab_size(texts, MODEL).rows == table.rows


def test_least_work_a_byte_is_taken_and_wider_models_afford_more(
    texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_sizes, "OFTEN", 0)
    narrow, wide = (suggest_vocab_size(texts, GPTConfig(n_layer=2, n_head=1, n_embd=C)) for C in (16, 512))
    for table in (narrow, wide):
        best = min(table.rows, key=lambda row: row.flops_per_byte)
        assert table.chosen == best.vocab_size
    assert narrow.chosen < wide.chosen


def test_ids_that_are_too_rare_to_learn_are_not_suggested(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model so large that its head costs nothing would take every id; a small corpus cannot teach them."""
    monkeypatch.setattr(vocabulary_sizes, "OFTEN", 15)
    large = GPTConfig(n_layer=48, n_head=1, n_embd=4096)
    few, more = suggest_vocab_size(texts[:60], large), suggest_vocab_size(texts, large)
    assert few.chosen < more.chosen
    for table in (few, more):
        assert {row.vocab_size for row in table.rows if row.typical_count >= 15} == {
            row.vocab_size for row in table.rows if row.vocab_size <= table.chosen
        }
        assert table.rows[-1].vocab_size > table.chosen


@pytest.mark.parametrize("text", ["ab", "ab " * 1000, "é" * 50])
def test_a_tiny_corpus_gets_what_there_is(text: str) -> None:
    table = suggest_vocab_size([text], MODEL)
    assert len(table.rows) == 1
    assert 257 <= table.chosen < 512


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"no text.*--vocab-size"):
        suggest_vocab_size(texts, MODEL)


def test_counts_are_taken_in_batches(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count_ids(tokenizer := train_bpe(texts, 300), texts)
    monkeypatch.setattr(vocabulary_sizes, "_CHARACTERS_AT_ONCE", 1000)
    told: list[int] = []
    assert np.array_equal(
        count_ids(tokenizer, texts, lambda done, _total, _what, _details="": told.append(done)), whole
    )
    assert told[-1] == len(texts)
    assert len(told) > 5


def test_gpt2_is_compared_where_it_is_at_hand(
    gpt2: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_sizes, "gpt2_tokenizer", lambda: gpt2)
    rows, chosen, missing = compare_tokenizers(texts, MODEL)
    whole, trimmed, plain = rows[0], rows[1], rows[-1]
    assert missing is None
    assert [whole.tokenizer, trimmed.tokenizer, plain.tokenizer] == ["gpt2", "gpt2 trimmed", "bytes"]
    assert whole.ids_used == trimmed.ids_used < trimmed.vocab_size < whole.vocab_size == 50257
    assert whole.bytes_per_token == trimmed.bytes_per_token > 1 == plain.bytes_per_token
    assert chosen in [row.vocab_size for row in rows if row.tokenizer == "bpe"]


def test_without_gpt2s_files_the_rest_is_compared(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Tokenizer:
        raise DataError("no files")

    monkeypatch.setattr(vocabulary_sizes, "gpt2_tokenizer", absent)
    rows, _, missing = compare_tokenizers(texts, MODEL)
    assert {row.tokenizer for row in rows} == {"bpe", "bytes"}
    assert missing == "no files"

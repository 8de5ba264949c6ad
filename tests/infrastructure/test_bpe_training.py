"""An own BPE: repeatable, the same in `tokenizers`, a beginning of every larger one, and bounded on strange text."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from smallgpt.domain.errors import ConfigError
from smallgpt.infrastructure import bpe_training
from smallgpt.infrastructure.bpe_training import train_bpe, training_parts
from smallgpt.infrastructure.tokenizers import END_OF_TEXT, Tokenizer

Stories = Callable[..., list[str]]


@pytest.mark.parametrize("seed", range(12))
def test_bpe_of_few_letters_agrees_with_tokenizers(seed: int, as_hub: Callable[[Tokenizer], Any]) -> None:
    """Long runs of few letters make many overlapping merges, where merging by id and by merge order could part ways."""
    rng = random.Random(seed)
    letters = "ab" if seed % 2 else "abc "
    texts = ["".join(rng.choices(letters, [rng.random() for _ in letters], k=40)) for _ in range(60)]
    tokenizer = train_bpe(texts, 500)
    hub = as_hub(tokenizer)
    for _ in range(100):
        text = "".join(rng.choices(letters, k=60))
        assert tokenizer.encode(text) == hub.encode(text).ids


def test_training_is_repeatable_and_learns(bpe: Tokenizer, stories: Stories) -> None:
    again = train_bpe(stories(200), 300)
    assert again.fingerprint == bpe.fingerprint
    assert train_bpe(stories(200, seed=5)[:100] + ["zebra"] * 500, 300).fingerprint != bpe.fingerprint
    assert bpe.vocab_size == 300
    text = stories(1, seed=9)[0]
    assert len(bpe.encode(text)) < len(text) / 1.5


@pytest.mark.parametrize("seed", range(6))
def test_a_smaller_vocabulary_is_the_beginning_of_a_larger_one(seed: int) -> None:
    rng = random.Random(seed)
    texts = ["".join(rng.choices("abcd ", [1, 2, 3, 4, 3], k=80)) for _ in range(50)]
    largest = train_bpe(texts, 600)
    for size in (257, 258, 300, 451):
        assert train_bpe(texts, size).rules.merges == largest.rules.merges[: size - 257]


def test_training_with_too_few_ids_or_too_little_text() -> None:
    with pytest.raises(ConfigError, match=r"256.* 257"):
        train_bpe(["text"], 256)
    with pytest.raises(ConfigError, match=r"\(257\) must be at least 258: 256 bytes and 2 special tokens"):
        train_bpe(["text"], 257, specials=["<|user|>"])
    assert train_bpe(["ab"], 4096).vocab_size == 258  # one merge is all there is
    assert train_bpe([], 4096).vocab_size == 257


def test_special_tokens_come_last_and_end_of_text_first_of_them(bpe: Tokenizer, stories: Stories) -> None:
    made = train_bpe(stories(200), 302, specials=["<|user|>", END_OF_TEXT, "<|end|>", "<|user|>"])
    assert made.specials == {END_OF_TEXT: 299, "<|user|>": 300, "<|end|>": 301}
    assert made.rules.merges == bpe.rules.merges


@pytest.mark.parametrize("name", ["", "ab", "x"])
def test_a_special_token_must_not_be_an_ordinary_one(name: str) -> None:
    with pytest.raises(ConfigError, match=f"special token '{name}'.*like <|user|>"):
        train_bpe(["ab"], 300, specials=[name])


def test_training_on_one_endless_word_takes_bounded_time() -> None:
    text = "".join(random.Random(0).choices("abcdefghij", k=2_000_000))
    started = time.monotonic()
    assert train_bpe([text], 300).vocab_size == 300
    assert time.monotonic() - started < 10


def test_a_bounded_part_of_the_corpus_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_training, "TRAINING_CHARACTERS", 10)
    read: list[str] = []

    def texts() -> Any:
        for text in ["abab", "cdcd", "efef", "ghgh", "ijij"]:
            read.append(text)
            yield text

    merges = train_bpe(texts(), 300).rules.merges
    assert {left + right for left, right in merges} >= {b"ab", b"cd", b"ef"}
    assert not any(b"g" in left + right for left, right in merges)
    assert len(read) <= 4


def test_reading_ends_when_there_are_words_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_training, "DIFFERENT_WORDS_BYTES", 12)
    made = train_bpe(["abab abab", "abab cdcd", "éfé", "ghgh"], 300)
    assert {b"ab", "éfé".encode()} <= {left + right for left, right in made.rules.merges}
    assert not any(b"g" in left + right for left, right in made.rules.merges)


@dataclass(frozen=True)
class Piece:
    """A part of a corpus of which only the size counts."""

    name: str
    size: int

    def documents(self) -> Iterator[str]:
        raise AssertionError("not to be read yet")


def test_the_parts_to_train_on_are_spread_over_a_large_corpus() -> None:
    small = [Piece(str(number), 10_000_000) for number in range(12)]
    assert training_parts(small) == tuple(small)
    large = [Piece(str(number), 100_000_000) for number in range(12)]
    assert training_parts(large) == (large[0],)
    many = [Piece(str(number), 10_000_000) for number in range(100)]
    assert [part.name for part in training_parts(many)] == [str(number) for number in range(0, 100, 10)]
    assert training_parts([]) == ()


def test_other_processes_and_numbers_of_threads_train_the_same() -> None:
    """Words are counted by several threads in tables of random order; none of it may show."""
    code = """
import random
from smallgpt.infrastructure.bpe_training import train_bpe, training_parts
rng = random.Random(0)
words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 6))) for _ in range(2000)]
print(train_bpe([" ".join(rng.choices(words, k=50)) for _ in range(2000)], 2000).fingerprint)
"""
    found = set()
    for threads in ("1", "4"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        found.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 1


def test_training_needs_no_torch_and_imports_cost_nothing_before() -> None:
    code = """
import sys
import smallgpt.infrastructure.bpe_training as training, smallgpt.infrastructure.vocabulary_sizes
assert "tokenizers" not in sys.modules
training.train_bpe(["some text"], 300)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_training_on_a_large_corpus_takes_bounded_memory() -> None:
    """In a process of its own, with words without end, a few of them often and most of them once, as in a language."""
    code = """
import re
import numpy as np
from smallgpt.infrastructure.bpe_training import train_bpe

rng, letters = np.random.default_rng(0), str.maketrans("0123456789", "ghijklmnop")

def texts():
    while True:
        yield " ".join(f"{79 * rank:x}" for rank in rng.zipf(1.3, 1000).tolist()).translate(letters)

train_bpe(texts(), 32768)
# not ru_maxrss, which begins with what the parent held
print(int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert int(ended.stdout) < 400


def test_progress_tells_what_is_done_while_nothing_is_read(stories: Stories) -> None:
    told: list[tuple[object, ...]] = []
    train_bpe(stories(1001), 300, lambda *words: told.append(words))
    assert told == [
        (0, None, "reading for the tokenizer", "0 documents"),
        (1000, None, "reading for the tokenizer", "1,000 documents"),
        (0, None, "merging", "the commonest pairs, some 1 s"),
    ]

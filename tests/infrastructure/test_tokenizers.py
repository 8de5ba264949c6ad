"""Tokenizers: round trips, agreement with Hugging Face `tokenizers` on the same file, and what bad input gives."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HubTokenizer

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure import tokenizers
from smallgpt.infrastructure.tokenizers import (
    StreamDecoder,
    Tokenizer,
    byte_tokenizer,
    gpt2_tokenizer,
    load_tokenizer,
    train_bpe,
    well_formed,
)

SHARED_CACHE = Path(__file__).parents[3] / "shared" / "tiktoken-cache"
WORDS = [
    *[
        "Once",
        "upon",
        "a",
        "time",
        "there",
        "was",
        "little",
        "girl's",
        "dog.",
        "They'll",
        "said:",
        "1234",
        "café",
        "🙂",
    ],
    '"Hi!"',
]
AWKWARD = [
    *["", " ", "  \n\n  x", "a  b", "tab\there ", "line\r\n\r\n", "it's I'LL", "\x00\x1f\x85\u2028"],
    *["\U0001f469\u200d\U0001f469\u200d\U0001f467 naïve e\u0301", "它在那里。", "\u0663\u0664 ½"],
]


def stories(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=60)) + rng.choice(["", "\n", "\n\nThe  end."]) for _ in range(count)]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(stories(200), 400)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    if not SHARED_CACHE.is_dir():
        pytest.skip("the GPT-2 files are not in ../shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED_CACHE))
        return gpt2_tokenizer()


def as_hub(tokenizer: Tokenizer, folder: Path) -> Any:
    """The same tokenizer as another tool reads it."""
    tokenizer.save(folder / "tokenizer.json")
    hub = HubTokenizer.from_file(str(folder / "tokenizer.json"))
    hub.encode_special_tokens = True
    return hub


@pytest.mark.parametrize("kind", ["bytes", "bpe", "gpt2"])
def test_saved_file_gives_the_same_ids_here_and_in_tokenizers(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer() if kind == "bytes" else request.getfixturevalue(kind)
    hub = as_hub(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.name == loaded.name == kind
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    assert hub.get_vocab_size() == tokenizer.vocab_size
    assert hub.token_to_id("<|endoftext|>") == tokenizer.end_of_text

    @settings(deadline=None, max_examples=150, derandomize=True)
    @given(st.one_of(st.text(), st.text(alphabet=" \n\t'sltaé🙂1.<|>"), st.lists(st.sampled_from(WORDS)).map(" ".join)))
    def agree(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids == loaded.encode(text) == hub.encode(text).ids
        assert tokenizer.decode(ids) == text == hub.decode(ids)

    agree()
    for text in [*AWKWARD, *stories(20, seed=1)]:
        assert tokenizer.encode(text) == hub.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_gpt2_ids_are_tiktokens(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED_CACHE))
    original = tiktoken.get_encoding("gpt2")
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    for text in [*AWKWARD, *stories(50)]:
        assert gpt2.encode(text) == original.encode_ordinary(text)


@pytest.mark.parametrize("seed", range(12))
def test_bpe_of_few_letters_agrees_with_tokenizers(seed: int, tmp_path: Path) -> None:
    """Long runs of few letters make many overlapping merges, where merging by id and by merge order could part ways."""
    rng = random.Random(seed)
    letters = "ab" if seed % 2 else "abc "
    texts = ["".join(rng.choices(letters, [rng.random() for _ in letters], k=40)) for _ in range(60)]
    tokenizer = train_bpe(texts, 500)
    hub = as_hub(tokenizer, tmp_path)
    for _ in range(100):
        text = "".join(rng.choices(letters, k=60))
        assert tokenizer.encode(text) == hub.encode(text).ids


def test_training_is_repeatable_and_learns(bpe: Tokenizer) -> None:
    again = train_bpe(stories(200), 400)
    assert again.fingerprint == bpe.fingerprint
    assert train_bpe(stories(200, seed=5)[:100] + ["zebra"] * 500, 400).fingerprint != bpe.fingerprint
    assert bpe.vocab_size <= 400
    text = stories(1, seed=9)[0]
    assert len(bpe.encode(text)) < len(text) / 3


def test_training_with_too_few_ids_or_too_little_text() -> None:
    with pytest.raises(ConfigError, match=r"256.* 257"):
        train_bpe(["text"], 256)
    assert train_bpe(["ab"], 4096).vocab_size == 258  # one merge is all there is


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_control_token_in_text_stays_text(kind: str, bpe: Tokenizer) -> None:
    tokenizer = byte_tokenizer() if kind == "bytes" else bpe
    ids = tokenizer.encode("before <|endoftext|> after")
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == "before <|endoftext|> after"
    assert tokenizer.end_of_text is not None
    assert tokenizer.decode([tokenizer.end_of_text]) == "<|endoftext|>"


def test_bytes_are_their_own_ids() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.encode("aé\n") == list("aé\n".encode())
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)


def test_lone_surrogates_are_replaced_and_pairs_joined(bpe: Tokenizer) -> None:
    assert well_formed("a\ud800b\ud83d\ude42") == "a\ufffdb🙂"
    assert bpe.decode(bpe.encode("a\ud800b\ud83d\ude42")) == "a\ufffdb🙂"


def test_byte_lengths_add_up_to_the_text(bpe: Tokenizer) -> None:
    text = " ".join(stories(3))
    lengths = bpe.byte_lengths()
    assert lengths.shape == (bpe.vocab_size,)
    assert lengths[bpe.encode(text)].sum() == len(text.encode())
    assert bpe.end_of_text is not None
    assert lengths[bpe.end_of_text] == 0


@pytest.mark.parametrize("wrong", [400, -1, 2**40])
def test_an_unknown_id_is_named(wrong: int, bpe: Tokenizer) -> None:
    with pytest.raises(DataError, match=f"id {wrong} .*{bpe.vocab_size}"):
        bpe.decode([1, wrong])


def test_stream_gives_whole_characters_only(bpe: Tokenizer) -> None:
    text = "naïve 🙂👩‍👧 它 end"
    for tokenizer in (bpe, byte_tokenizer()):
        stream = StreamDecoder(tokenizer)
        pieces = [stream.feed(token) for token in tokenizer.encode(text)]
        assert "".join(pieces) + stream.flush() == text
        assert not any("\ufffd" in piece for piece in pieces)
    half = StreamDecoder(byte_tokenizer())
    assert half.feed(0xF0) == ""
    assert half.flush() == "\ufffd"


def test_long_text_is_cut_where_the_ids_stay_the_same(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(stories(30, seed=3)) + "  \n \n  end"
    whole = bpe.encode(text)
    monkeypatch.setattr(tokenizers, "LONGEST_PIECE", 61)
    assert bpe.encode(text) == whole


@pytest.mark.parametrize(
    "text", ["a" * 2_000_000, " " * 2_000_000 + "a", "ab🙂" * 300_000, "x\n" + "\n" * 999_999 + "y"]
)
def test_text_without_places_to_cut_takes_bounded_time(text: str, bpe: Tokenizer) -> None:
    """A megabyte of spaces overflows the stack of tiktoken's regex engine when given at once."""
    started = time.monotonic()
    ids = bpe.encode(text)
    assert time.monotonic() - started < 10
    assert bpe.decode(ids) == text


def test_training_on_one_endless_word_takes_bounded_time() -> None:
    text = "".join(random.Random(0).choices("abcdefghij", k=2_000_000))
    started = time.monotonic()
    assert train_bpe([text], 300).vocab_size == 300
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document["model"].update(type="Unigram"), "another kind"),
        (lambda document: document["model"].pop("merges"), "merges"),
        (lambda document: document.update(normalizer={"type": "NFC"}), "normalizer"),
        (lambda document: document["model"]["merges"].reverse(), "order of the merges"),
        (lambda document: document["model"]["vocab"].pop("a"), "no token"),
        (lambda document: document["added_tokens"][0].update(content="<s>"), "control tokens"),
    ],
)
def test_other_kinds_of_tokenizer_are_refused(change: Any, words: str, bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    change(document)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DataError, match=words):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_broken_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path / "missing.json")


def test_gpt2_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def unreachable(url: str) -> None:
        raise requests.exceptions.ConnectionError("no route")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(requests, "get", unreachable)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    with pytest.raises(DataError, match=r"--tokenizer bpe.*TIKTOKEN_CACHE_DIR"):
        gpt2_tokenizer()

"""Text to ids and back: round trips, special tokens, batches of documents, and what bad input gives."""

import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure import tokenizers
from smallgpt.infrastructure.surrogates import well_formed
from smallgpt.infrastructure.tokenizers import (
    END_OF_TEXT,
    GPT2_FINGERPRINT,
    PATTERN,
    StreamDecoder,
    Tokenizer,
    byte_tokenizer,
)

SHARED_CACHE = Path(__file__).parents[3] / "shared" / "tiktoken-cache"
Stories = Callable[..., list[str]]
AWKWARD = [
    *["", " ", "  \n\n  x", "a  b", "tab\there ", "line\r\n\r\n", "it's I'LL", "\x00\x1f\x85\u2028"],
    *["\U0001f469\u200d\U0001f469\u200d\U0001f467 naïve e\u0301", "它在那里。", "\u0663\u0664 ½"],
]


def test_gpt2_ids_are_tiktokens(gpt2: Tokenizer, stories: Stories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED_CACHE))
    assert gpt2.fingerprint == GPT2_FINGERPRINT
    original = tiktoken.get_encoding("gpt2")
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    for text in [*AWKWARD, *stories(50)]:
        assert gpt2.encode(text) == original.encode_ordinary(text)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_control_token_in_text_stays_text(kind: str, bpe: Tokenizer) -> None:
    tokenizer = byte_tokenizer() if kind == "bytes" else bpe
    ids = tokenizer.encode("before <|endoftext|> after")
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == "before <|endoftext|> after"
    assert tokenizer.end_of_text is not None
    assert tokenizer.decode([tokenizer.end_of_text]) == "<|endoftext|>"


@pytest.fixture
def chat(bpe: Tokenizer) -> Tokenizer:
    """The BPE with two more special tokens."""
    vocabulary, merges, specials = bpe.rules
    return Tokenizer(vocabulary, merges, {**specials, "<|user|>": bpe.vocab_size, "<|end|>": bpe.vocab_size + 1})


def test_special_tokens_are_known_by_name_and_never_come_from_text(chat: Tokenizer, bpe: Tokenizer) -> None:
    assert list(chat.specials) == [END_OF_TEXT, "<|user|>", "<|end|>"]
    assert chat.special("<|user|>") == chat.vocab_size - 2
    assert chat.end_of_text == bpe.end_of_text == chat.special(END_OF_TEXT)
    text = "<|user|>hello<|end|><|endoftext|>"
    assert chat.encode(text) == bpe.encode(text)
    assert chat.encode_documents([text, "b"])[0].tolist() == bpe.encode_documents([text, "b"])[0].tolist()
    assert chat.decode([chat.special("<|user|>"), *chat.encode("hi")]) == "<|user|>hi"
    assert not chat.byte_lengths()[list(chat.specials.values())].any()
    with pytest.raises(DataError, match=r"'<\|system\|>'; it has <\|endoftext\|>, <\|user\|>, <\|end\|>"):
        chat.special("<|system|>")
    with pytest.raises(DataError, match="it has none"):
        Tokenizer(*bpe.rules[:2], {}).special("<|user|>")


def test_special_tokens_count_in_the_fingerprint(chat: Tokenizer, bpe: Tokenizer) -> None:
    others = Tokenizer(*chat.rules[:2], {**bpe.specials, "<|end|>": bpe.vocab_size, "<|user|>": bpe.vocab_size + 1})
    assert len({bpe.fingerprint, chat.fingerprint, others.fingerprint}) == 3
    known = "4ce23c95161565ecad0000545dc920a0374012514b87b32d546ea851e1c6b04a"
    assert byte_tokenizer().fingerprint == known  # data folders hold it


def test_a_pickled_tokenizer_is_the_same(chat: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(chat))
    assert again.rules == chat.rules
    assert again.encode("They said") == chat.encode("They said")


def one_by_one(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """What encode_documents should give."""
    stop = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    ids = [tokenizer.encode_array(text).tolist() for text in texts]
    return [number for each in ids for number in [*each, *stop]], [len(each) for each in ids]


@pytest.mark.parametrize("kind", ["bytes", "bpe", "chat", "without end-of-text", "prefix of end-of-text"])
def test_documents_together_get_the_ids_that_each_gets_alone(
    kind: str, bpe: Tokenizer, chat: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary, merges, specials = bpe.rules
    tokenizer = {
        "bytes": byte_tokenizer(),
        "bpe": bpe,
        "chat": chat,
        "without end-of-text": Tokenizer(vocabulary, merges, {}),
        "prefix of end-of-text": Tokenizer(vocabulary, merges, {"<|end": bpe.vocab_size, **specials}),
    }[kind]
    monkeypatch.setattr(tokenizers, "LONGEST_PIECE", 40)
    words = st.sampled_from(
        [END_OF_TEXT, "<|endoftext|", ">", "<|user|>", " " * 39, " " * 60, "\ud83d", "\ude42", "They", "\n", " a", "é"]
    )
    text = st.one_of(st.text(max_size=50), st.lists(words, max_size=6).map("".join))

    @settings(max_examples=150)
    @given(st.lists(text, max_size=6))
    def agree(texts: list[str]) -> None:
        ids, lengths = tokenizer.encode_documents(texts)
        assert (ids.dtype.name, lengths.dtype.name) == ("uint32", "int64")
        assert (ids.tolist(), lengths.tolist()) == one_by_one(tokenizer, texts)

    agree()


def test_long_runs_of_spaces_among_documents_are_encoded(bpe: Tokenizer) -> None:
    texts = ["a", " " * 40_000, " " * 32_768, "", "They said" * 5000]
    ids, lengths = bpe.encode_documents(texts)
    assert (ids.tolist(), lengths.tolist()) == one_by_one(bpe, texts)


def test_gpt2_encodes_documents_together_as_alone(gpt2: Tokenizer, stories: Stories) -> None:
    texts = [*stories(100), *AWKWARD]
    ids, lengths = gpt2.encode_documents(texts)
    assert (ids.tolist(), lengths.tolist()) == one_by_one(gpt2, texts)


@settings(max_examples=1000)
@given(text=st.one_of(st.text(), st.text(alphabet="'stlvermd \n\t\u2028\u00a0aé1½.,🙂"), st.sampled_from(AWKWARD)))
def test_text_is_split_as_gpt2s_own_pattern_splits_it(text: str, bpe: Tokenizer) -> None:
    vocabulary, _, _ = bpe.rules
    plain = tiktoken.Encoding("plain", pat_str=PATTERN, mergeable_ranks=vocabulary, special_tokens={})
    assert bpe.encode(text) == plain.encode_ordinary(text)


def test_bytes_are_their_own_ids() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.encode("aé\n") == list("aé\n".encode())
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)


def test_lone_surrogates_are_replaced_and_pairs_joined(bpe: Tokenizer) -> None:
    assert well_formed("a\ud800b\ud83d\ude42") == "a\ufffdb🙂"
    assert bpe.decode(bpe.encode("a\ud800b\ud83d\ude42")) == "a\ufffdb🙂"


def test_byte_lengths_add_up_to_the_text(bpe: Tokenizer, stories: Stories) -> None:
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


def test_long_text_is_cut_where_the_ids_stay_the_same(
    bpe: Tokenizer, stories: Stories, monkeypatch: pytest.MonkeyPatch
) -> None:
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

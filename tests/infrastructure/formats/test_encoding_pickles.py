"""tokenizer.pkl: real pickles of tiktoken in, and out; everything else is refused and named."""

import os
import pickle
import random
import time
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.formats.encoding_pickles import PATTERNS, merges_of, read_encoding, write_encoding
from smallgpt.infrastructure.tokenizers import PATTERN, Tokenizer, byte_tokenizer
from tests.infrastructure.conftest import SHARED_CACHE, made_up_stories

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def encoding_of(tokenizer: Tokenizer, **changes: Any) -> tiktoken.Encoding:
    facts = {
        "pat_str": PATTERN,
        "mergeable_ranks": tokenizer.rules.vocabulary,
        "special_tokens": dict(tokenizer.specials),
    }
    return tiktoken.Encoding("made", **{**facts, **changes})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickled_encoding_is_the_tokenizer(protocol: int, bpe: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(encoding_of(bpe), protocol))
    again = read_encoding(path)
    assert again.fingerprint == bpe.fingerprint
    assert again.rules == bpe.rules


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_gpt2s_pickled_by_its_name_and_as_a_whole(
    protocol: int, gpt2: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED_CACHE))
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(tiktoken.get_encoding("gpt2"), protocol))
    assert path.stat().st_size < 200
    assert read_encoding(path).fingerprint == gpt2.fingerprint


def test_gpt2s_merges_are_found_from_its_ranks(gpt2: Tokenizer) -> None:
    assert merges_of(gpt2.rules.vocabulary) == gpt2.rules.merges


def test_what_is_written_is_an_encoding_of_tiktoken(bpe: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pkl"
    for tokenizer in (bpe, byte_tokenizer()):
        write_encoding(tokenizer, path)
        encoding = pickle.loads(path.read_bytes())
        assert type(encoding) is tiktoken.Encoding
        assert encoding.n_vocab == tokenizer.vocab_size
        for text in [*made_up_stories(20), "  \n\n x 的 🙂 <|endoftext|>"]:
            assert encoding.encode_ordinary(text) == tokenizer.encode(text)
        assert read_encoding(path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_every_spelling_of_the_pattern_splits_alike(pattern: str, bpe: Tokenizer, tmp_path: Path) -> None:
    encoding = encoding_of(bpe, pat_str=pattern)
    alphabet = "ab '\"stdmrevl1½٣ \t\n\r\x85\u2028é的🙂\u0301."

    @settings(max_examples=200)
    @given(text=st.text(alphabet=alphabet, max_size=30))
    def agree(text: str) -> None:
        assert encoding.encode_ordinary(text) == bpe.encode(text)

    agree()
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    assert read_encoding(tmp_path / "tokenizer.pkl").fingerprint == bpe.fingerprint


def state(bpe: Tokenizer, **changes: Any) -> bytes:
    """An Encoding that tiktoken itself might not even make."""
    facts = {
        "name": "made",
        "pat_str": PATTERN,
        "mergeable_ranks": bpe.rules.vocabulary,
        "special_tokens": dict(bpe.specials),
    }
    whole = changes.pop("state", {**facts, **changes})
    return b"\x80\x04ctiktoken.core\nEncoding\n)\x81" + pickle.dumps(whole, 4)[2:-1] + b"b."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "cl100k_base"}, r"tiktoken's 'cl100k_base', and only its 'gpt2'"),
        ({"state": 5}, "does not hold a name, a pattern, ranks and special tokens"),
        ({"state": {"name": "made"}}, "does not hold a name"),
        ({"pat_str": r"\w+"}, r"splits text in another way than GPT-2, by '\\\\w\+'"),
        ({"mergeable_ranks": {"a": 1}}, "tokens are not all of 1 to 1024 bytes"),
        ({"mergeable_ranks": {}}, "some bytes have no token|two of its|none with id"),
        (
            {"mergeable_ranks": {bytes([n]): n for n in range(256)} | {b"abc": 256}},
            "no merge .* gives its token b'abc'",
        ),
        ({"special_tokens": {1: 300}}, "special tokens are not all text"),
        ({"special_tokens": {"<|end|>": True}}, "not whole numbers"),
        ({"special_tokens": {"<|end|>": 5}}, "two of its tokens have id 5"),
        ({"special_tokens": {"<|end|>": 999}}, "none with id 299"),
    ],
)
def test_encodings_that_do_not_fit_are_refused(changes: Any, words: str, bpe: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(state(bpe, **changes))
    with pytest.raises(CheckpointError, match=words) as refused:
        read_encoding(path)
    assert str(refused.value).startswith(f"{path} is not a pickled tiktoken Encoding: ")
    assert len(str(refused.value).splitlines()) == 2


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("where", ["alone", "as ranks", "as a token's rank", "as the name"])
def test_code_in_it_does_not_run(where: str, bpe: Tokenizer, tmp_path: Path) -> None:
    path, proof = tmp_path / "tokenizer.pkl", tmp_path / "proof"
    payload = Payload(proof)
    path.write_bytes(
        {
            "alone": pickle.dumps(payload),
            "as ranks": state(bpe, mergeable_ranks=payload),
            "as a token's rank": state(bpe, mergeable_ranks={b"a": payload}),
            "as the name": state(bpe, state=payload),
        }[where]
    )
    with pytest.raises(CheckpointError, match=rf"it would import '{os.name}\.system'\.\nNothing in it was run"):
        read_encoding(path)
    assert not proof.exists()


def test_a_damaged_pickle_is_refused_or_still_the_tokenizer(bpe: Tokenizer, tmp_path: Path) -> None:
    small = Tokenizer(dict(list(bpe.rules.vocabulary.items())[:262]), bpe.rules.merges[:6], {"<|endoftext|>": 262})
    path = tmp_path / "tokenizer.pkl"
    write_encoding(small, path)
    good = path.read_bytes()

    @settings(max_examples=250)
    @given(
        at=st.integers(0, len(good) - 1), how=st.sampled_from(["cut", "flip", "drop", "twice", "byte"]), n=st.randoms()
    )
    def stays_safe(at: int, how: str, n: random.Random) -> None:
        bad = {
            "cut": good[:at],
            "flip": good[:at] + bytes([good[at] ^ 1 << n.randrange(8)]) + good[at + 1 :],
            "drop": good[:at] + good[at + n.randrange(1, 9) :],
            "twice": good[:at] + good[max(0, at - n.randrange(1, 99)) :],
            "byte": good[:at] + n.randbytes(1) + good[at + 1 :],
        }[how]
        path.write_bytes(bad)
        try:
            found = read_encoding(path)
        except CheckpointError:
            return
        found.encode("Once upon a time")  # another tokenizer perhaps, as a pickle has no checksum, but a whole one
        assert found.vocab_size == small.vocab_size

    stays_safe()


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_encoding(tmp_path)


def test_tokens_too_long_to_find_their_merges_are_refused_at_once(bpe: Tokenizer, tmp_path: Path) -> None:
    long = {bytes([97 + number % 26]) * 1000 + str(number).encode(): 300 + number for number in range(200)}
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps({"made": 1}))
    ranks = {**byte_tokenizer().rules.vocabulary, **long}
    path.write_bytes(pickle.dumps(encoding_of(bpe, mergeable_ranks=ranks, special_tokens={}), 4))
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="longer, all in all, than those of a vocabulary"):
        read_encoding(path)
    assert time.monotonic() - began < 5

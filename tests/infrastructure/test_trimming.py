"""A trimmed tokenizer: the same tokens for the corpus it was trimmed to, bytes for the rest, and a file for other tools."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.bpe_training import train_bpe
from smallgpt.infrastructure.tokenizers import END_OF_TEXT, Tokenizer, load_tokenizer
from smallgpt.infrastructure.trimming import NO_ID, trim

STORIES = Path(__file__).parents[3] / "shared" / "data" / "tinystories" / "data"
Stories = Callable[..., list[str]]


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    """A BPE of few letters, whose merges overlap much."""
    rng = random.Random(0)
    return train_bpe(["".join(rng.choices("abc d", [3, 2, 2, 1, 1], k=100)) for _ in range(100)], 600)


@settings(max_examples=300)
@given(data=st.data(), seen=st.text(alphabet="abcd é", max_size=60))
def test_text_of_used_ids_gets_their_new_ids(data: st.DataObject, seen: str, letters: Tokenizer) -> None:
    used = letters.encode_array(seen)
    trimmed, renumber = trim(letters, used)
    assert trimmed.encode(seen) == renumber[used].tolist()

    # any other text of used ids: made of them, and kept where the full tokenizer gives them back
    other = letters.decode(data.draw(st.lists(st.sampled_from(used.tolist()), max_size=20)) if len(used) else [])
    ids = letters.encode_array(other)
    if set(ids.tolist()) <= set(used.tolist()):
        assert trimmed.encode(other) == renumber[ids].tolist()


@settings(max_examples=100)
@given(text=st.text())
def test_other_text_is_made_of_what_is_left(text: str, letters: Tokenizer) -> None:
    trimmed, _ = trim(letters, letters.encode_array("abcd ab"))
    assert trimmed.vocab_size < letters.vocab_size
    assert trimmed.decode(trimmed.encode(text)) == text


def test_ids_keep_their_order_and_special_tokens_come_last(stories: Stories) -> None:
    full = train_bpe(stories(200), 302, specials=["<|user|>"])
    used = np.unique(full.encode_array(stories(2, seed=3)[0][:80]))
    trimmed, renumber = trim(full, used)
    kept = renumber[renumber != NO_ID]
    assert kept.tolist() == list(range(trimmed.vocab_size))
    assert (renumber.dtype.name, len(renumber)) == ("uint32", full.vocab_size)
    assert trimmed.specials == {END_OF_TEXT: trimmed.vocab_size - 2, "<|user|>": trimmed.vocab_size - 1}
    assert renumber[[full.special(END_OF_TEXT), full.special("<|user|>")]].tolist() == list(trimmed.specials.values())
    mask = np.zeros(full.vocab_size, dtype=bool)
    mask[used] = True
    assert trim(full, mask)[0].fingerprint == trimmed.fingerprint


def test_nothing_used_leaves_bytes_and_everything_used_changes_nothing(letters: Tokenizer) -> None:
    assert trim(letters, np.array([], dtype=np.int64))[0].name == "bytes"
    whole, renumber = trim(letters, np.ones(letters.vocab_size, dtype=bool))
    assert whole.fingerprint == letters.fingerprint
    assert renumber.tolist() == list(range(letters.vocab_size))


def test_ids_of_another_tokenizer_are_refused(letters: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"id 70000 .* 600 ids"):
        trim(letters, np.array([3, 70_000]))


def test_a_trimmed_tokenizer_is_the_same_in_other_tools(
    letters: Tokenizer, as_hub: Callable[[Tokenizer], Any], tmp_path: Path
) -> None:
    trimmed, _ = trim(letters, letters.encode_array("abcab dabcab bcabca"))
    hub = as_hub(trimmed)
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint == trimmed.fingerprint
    assert trimmed.name == "bpe"
    rng = random.Random(1)
    for _ in range(200):
        text = "".join(rng.choices("abcd é", k=40))
        assert trimmed.encode(text) == hub.encode(text).ids


def test_gpt2_trimmed_to_real_stories_loses_nothing(gpt2: Tokenizer, as_hub: Callable[[Tokenizer], Any]) -> None:
    if not STORIES.is_dir():
        pytest.skip("the sample of TinyStories is not in ../shared")
    from pyarrow.parquet import read_table

    texts = read_table(STORIES / "validation-00000-of-00001.parquet")["text"].to_pylist()
    ids, _ = gpt2.encode_documents(texts)
    trimmed, renumber = trim(gpt2, ids)
    assert trimmed.vocab_size < 5000
    assert np.array_equal(trimmed.encode_documents(texts)[0], renumber[ids])
    hub = as_hub(trimmed)
    for text in [*texts[:50], "Worte, die dort nicht stehen: Überraschung 🙂"]:
        assert trimmed.encode(text) == hub.encode(text).ids
        assert trimmed.decode(trimmed.encode(text)) == text

"""A token a character: round trips, other tools, and characters that are not in the table."""

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HubTokenizer

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.character_tokenizer import CharacterTokenizer
from smallgpt.infrastructure.text_stream import TextStream
from smallgpt.infrastructure.tokenizers import load_tokenizer
from smallgpt.infrastructure.trimming import trim

TABLE = "\n !,.abcdeZé的🙂\u0301'\"\\\r\t"
texts = st.text(alphabet=TABLE, max_size=40)


@pytest.fixture(scope="module")
def characters() -> CharacterTokenizer:
    return CharacterTokenizer(TABLE)


@given(text=texts)
def test_ids_are_places_in_the_table_and_give_the_text_back(characters: CharacterTokenizer, text: str) -> None:
    ids = characters.encode(text)
    assert ids == [TABLE.index(character) for character in text]
    assert characters.decode(ids) == text
    assert characters.decode_bytes(ids) == text.encode()
    assert characters.byte_lengths()[ids].sum() == len(text.encode())


def test_other_tools_read_the_file_and_encode_and_decode_the_same(
    characters: CharacterTokenizer, tmp_path: Path
) -> None:
    characters.save(tmp_path / "tokenizer.json")
    hub = HubTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert hub.get_vocab_size() == characters.vocab_size

    @given(text=texts)
    def agree(text: str) -> None:
        ids = characters.encode(text)
        assert hub.encode(text).ids == ids
        assert hub.decode(ids) == text

    agree()
    with pytest.raises(Exception, match="UNK"):
        hub.encode("Q")


def test_a_saved_and_a_pickled_table_are_the_same(characters: CharacterTokenizer, tmp_path: Path) -> None:
    characters.save(tmp_path / "tokenizer.json")
    for again in (load_tokenizer(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(characters))):
        assert isinstance(again, CharacterTokenizer)
        assert (again.characters, again.fingerprint) == (characters.characters, characters.fingerprint)
        assert again.encode("bad") == characters.encode("bad")
    assert characters.fingerprint != CharacterTokenizer(TABLE[::-1]).fingerprint


def test_an_unknown_character_is_named(characters: CharacterTokenizer) -> None:
    for text, shown in (("abQc", "'Q'"), ("ab\ud83d", "'\ufffd'"), ("\U0010ffff", "'\\U0010ffff'")):
        with pytest.raises(DataError) as refused:
            characters.encode(text)
        assert str(refused.value).startswith(f"{shown} is none of the {len(TABLE)} characters")
    assert characters.encode("\ud83d\ude42") == characters.encode("🙂")  # a pair of surrogates is the character


@pytest.mark.parametrize("ids", [[len(TABLE)], [0, -1]])
def test_an_id_outside_the_table_is_an_error(characters: CharacterTokenizer, ids: list[int]) -> None:
    with pytest.raises(DataError, match=f"token id {ids[-1]} is not in this tokenizer's vocabulary"):
        characters.decode(ids)


def test_there_are_no_special_tokens(characters: CharacterTokenizer) -> None:
    assert (characters.end_of_text, dict(characters.specials), characters.name) == (None, {}, "characters")
    with pytest.raises(DataError, match="it has none"):
        characters.special("<|endoftext|>")


def test_documents_have_nothing_between_them(characters: CharacterTokenizer) -> None:
    ids, lengths = characters.encode_documents(["bad", "", "🙂 é"])
    assert ids.tolist() == characters.encode("bad🙂 é")
    assert lengths.tolist() == [3, 0, 3]
    assert (ids.dtype.name, lengths.dtype.name) == ("uint32", "int64")
    assert [len(part) for part in characters.encode_documents([])] == [0, 0]


def test_a_stream_shows_every_character_at_once(characters: CharacterTokenizer) -> None:
    stream = TextStream(characters, stops=["e."])
    assert [stream.feed(number) for number in characters.encode("🙂é的e.")] == ["🙂", "é", "的", "", ""]
    assert stream.stop == "e."


def test_a_table_is_not_trimmed(characters: CharacterTokenizer) -> None:
    with pytest.raises(ConfigError, match="--vocab-trim"):
        trim(characters, np.array([1, 2]))


@pytest.mark.parametrize("table", [[], ["a", "a"], ["ab"], [""], ["\ud800"], [1]])
def test_what_is_no_table(table: Any) -> None:
    with pytest.raises(ValueError, match=r"empty|twice|is not one character"):
        CharacterTokenizer(table)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.replace("Isolated", "Removed"), "does not cut text into single characters"),
        (lambda file: file.replace(r"[\\s\\S]", r"\\w+"), "does not cut text into single characters"),
        (lambda file: file.replace('"é": 11', '"é": 99'), "none has id 11"),
        (lambda file: file.replace('"é": 11', '"é": 10'), "none has id 11"),
        (lambda file: file.replace('"é"', '"éa"'), "'éa' is not one character"),
        (lambda file: file.replace("vocab", "words"), "nothing under 'vocab'"),
    ],
)
def test_files_that_are_no_table_are_refused(
    change: Callable[[str], str], words: str, characters: CharacterTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    characters.save(path)
    changed = change(path.read_text(encoding="utf-8"))
    assert changed != path.read_text(encoding="utf-8")
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        load_tokenizer(path)


def test_a_large_table_with_one_character_twice_is_refused_at_once() -> None:
    table = [chr(0x4E00 + number) for number in range(20_000)]
    began = time.monotonic()
    with pytest.raises(ValueError, match="is there twice"):
        CharacterTokenizer([*table, table[-1]])
    assert time.monotonic() - began < 1  # counting each one took five seconds

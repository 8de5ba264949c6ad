"""A token for each character of a table, as nanoGPT's smallest example has.

There is no token for any other character, and none that ends a document. On disk it is a Hugging Face `tokenizer.json`, a
list of words into which text is cut character by character, so that other tools read it.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.surrogates import well_formed

MODEL = "WordLevel"
_SPLITTING = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
_DECODER = {"type": "Fuse"}


class CharacterTokenizer:
    """A character a token; a character's id is its place in the table. The same interface as `tokenizers.Tokenizer`'s."""

    name: Literal["characters"] = "characters"
    end_of_text: None = None
    specials: Mapping[str, int] = {}

    def __init__(self, characters: Sequence[str]) -> None:
        """The table. Raises ValueError for what is not one character, or there twice."""
        _check(characters)
        self.characters = tuple(characters)
        self.vocab_size = len(self.characters)
        points = np.array([ord(character) for character in self.characters], dtype=np.uint32)
        self._ids = np.argsort(points).astype(np.uint32)
        self._points = points[self._ids]  # ascending, to be searched

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the table: equal when every text gets equal ids."""
        return sha256(json.dumps(["characters", self.characters]).encode()).hexdigest()

    def special(self, name: str) -> int:
        """Raises DataError: a table of characters has no special token."""
        raise DataError(f"this tokenizer has no special token {name!r}; it has none")

    def encode(self, text: str) -> list[int]:
        """Ids of the characters; a lone surrogate counts as U+FFFD. Raises DataError for one that is not in the table."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """`encode` as (characters,) uint32."""
        points = np.frombuffer(well_formed(text).encode("utf-32-le"), dtype="<u4")
        places = np.searchsorted(self._points, points).clip(max=self.vocab_size - 1)
        unknown = self._points[places] != points
        if unknown.any():
            raise DataError(
                f"{chr(points[unknown][0])!r} is none of the {self.vocab_size} characters that this model knows; "
                "leave it out, or write it otherwise"
            )
        ids: npt.NDArray[np.uint32] = self._ids[places]
        return ids

    def encode_documents(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """`encode_array` of many texts, (characters,) uint32, and each one's length, (documents,) int64."""
        arrays = [self.encode_array(text) for text in texts]
        lengths = np.array([len(ids) for ids in arrays], dtype=np.int64)
        return np.concatenate([self._ids[:0], *arrays]), lengths

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """UTF-8 of the characters. Raises DataError for an id outside the table."""
        return self.decode(ids).encode()

    def decode(self, ids: Sequence[int]) -> str:
        """The text behind ids. Raises DataError for an id outside the table."""
        wrong = next((number for number in ids if not 0 <= number < self.vocab_size), None)
        if wrong is not None:
            raise DataError(
                f"token id {wrong} is not in this tokenizer's vocabulary of {self.vocab_size} ids; "
                "the tokens were made with another tokenizer"
            )
        return "".join(self.characters[number] for number in ids)

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """(vocab_size,) bytes of each character in UTF-8."""
        return np.array([len(character.encode()) for character in self.characters], dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write a `tokenizer.json` that `tokenizers.Tokenizer.from_file` reads and encodes the same with."""
        document: dict[str, Any] = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": _SPLITTING,
            "post_processor": None,
            "decoder": _DECODER,
            "model": {
                "type": MODEL,
                "vocab": {character: number for number, character in enumerate(self.characters)},
                "unk_token": "<unk>",  # the library wants a name, and refuses an unknown character as it stands for nothing
            },
        }
        path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def characters_of(document: Mapping[str, Any]) -> list[str]:
    """The table in a parsed `tokenizer.json`. Raises ValueError, or LookupError and the like, for any other one."""
    if document["pre_tokenizer"] != _SPLITTING or document.get("normalizer") or document["added_tokens"]:
        raise ValueError(f"its model is {MODEL}, but it does not cut text into single characters")
    vocabulary = document["model"]["vocab"]
    return in_order({number: character for character, number in vocabulary.items()}, len(vocabulary))


def in_order(characters: Mapping[int, str], size: int) -> list[str]:
    """A table by ids as a list. Raises ValueError unless the ids are 0 to size - 1."""
    missing = next((number for number in range(size) if number not in characters), None)
    if missing is not None or len(characters) != size:
        raise ValueError(f"its {size} characters have {len(characters)} ids, and none has id {missing}")
    return [characters[number] for number in range(size)]


def _check(characters: Sequence[str]) -> None:
    if not characters:
        raise ValueError("the table is empty")
    for character in characters:
        if not isinstance(character, str) or len(character) != 1 or well_formed(character) != character:
            raise ValueError(f"{character!r} is not one character")
    ((commonest, count),) = Counter(characters).most_common(1)
    if count > 1:
        raise ValueError(f"{commonest!r} is there twice")

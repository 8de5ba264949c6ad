"""meta.pkl: nanoGPT's table of characters, a pickle of plain values, read without executing it."""

import pickle
from pathlib import Path
from typing import Any

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.character_tokenizer import CharacterTokenizer, in_order
from smallgpt.infrastructure.formats.safe_pickle import read_pickle

META = "meta.pkl"


def read_characters(path: Path) -> CharacterTokenizer:
    """The table in a meta.pkl. Nothing is executed; raises DataError for anything else, and names it."""
    try:
        return _table(read_pickle(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(
            f"{path} is no table of characters: {error}.\n"
            "Nothing in it was run; --tokenizer names another tokenizer, or none."
        ) from None


def write_characters(tokenizer: CharacterTokenizer, path: Path) -> None:
    """Write it as nanoGPT's prepare.py does."""
    itos = dict(enumerate(tokenizer.characters))
    stoi = {character: number for number, character in itos.items()}
    path.write_bytes(pickle.dumps({"vocab_size": tokenizer.vocab_size, "itos": itos, "stoi": stoi}))


def _table(content: Any) -> CharacterTokenizer:
    match content:
        case {"vocab_size": int(size), "itos": dict(itos), "stoi": dict(stoi)}:
            characters = in_order(itos, size)
            tokenizer = CharacterTokenizer(characters)  # refuses what are no characters, before they are looked up
            if stoi != {character: number for number, character in enumerate(characters)}:
                raise ValueError("its stoi is not its itos turned round")
            return tokenizer
    raise ValueError("it does not hold vocab_size, itos and stoi")

"""The tokenizer of a Hugging Face folder: tokenizer.json, or GPT-2's older vocab.json and merges.txt."""

from pathlib import Path
from typing import Any

from smallgpt.domain.errors import CheckpointError, DataError
from smallgpt.infrastructure.files import write_json
from smallgpt.infrastructure.tokenizer_files import read_gpt2_pair
from smallgpt.infrastructure.tokenizers import END_OF_TEXT, AnyTokenizer, Tokenizer, load_tokenizer

FILE, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
NAMES = (FILE, VOCABULARY, MERGES)


def read_tokenizer(folder: Path, ids: int) -> tuple[AnyTokenizer | None, tuple[str, ...]]:
    """The tokenizer of a model with so many ids, and what is to be said about it.

    One of another kind than smallgpt's is left out. Raises DataError for a damaged one, CheckpointError for one with more ids.
    """
    try:
        if (folder / FILE).exists():
            tokenizer = load_tokenizer(folder / FILE)
        elif (folder / VOCABULARY).exists() and (folder / MERGES).exists():
            tokenizer = Tokenizer(*read_gpt2_pair(folder / VOCABULARY, folder / MERGES))
        else:
            return None, (f"it has no tokenizer ({FILE}, or {VOCABULARY} and {MERGES}); token ids work, text does not",)
    except DataError as error:
        reason = str(error).partition(";")[0]
        if not _is_sound(folder / FILE):
            raise DataError(f"{reason}; fetch or copy it again, or remove it to go without") from None
        return None, (f"the tokenizer was left out ({reason}); token ids work, text does not",)
    if tokenizer.vocab_size > ids:
        raise CheckpointError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} ids, the model {ids}; it is another model's"
        )
    if tokenizer.vocab_size < ids:
        return tokenizer, (
            f"the tokenizer has {tokenizer.vocab_size} of the model's {ids} ids; the others are padding",
        )
    return tokenizer, ()


def write_tokenizer(tokenizer: AnyTokenizer, block_size: int, folder: Path) -> None:
    """tokenizer.json, and tokenizer_config.json with what AutoTokenizer wants to know beyond it."""
    tokenizer.save(folder / FILE)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.end_of_text is not None:
        settings |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    write_json(folder / "tokenizer_config.json", settings)


def _is_sound(file: Path) -> bool:
    """Can the library whose format it is read it?"""
    from tokenizers import Tokenizer as Theirs

    try:
        Theirs.from_file(str(file))
    except Exception:  # the library raises nothing more special
        return False
    return True

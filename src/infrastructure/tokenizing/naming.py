"""A tokenizer that exists already, by what a user calls it."""

from pathlib import Path

from smallgpt.domain.errors import ConfigError
from smallgpt.infrastructure.formats.character_tables import read_characters
from smallgpt.infrastructure.tokenizers import AnyTokenizer
from smallgpt.infrastructure.tokenizing.choosing import TokenizerChoice


def named_tokenizer(choice: str) -> AnyTokenizer | None:
    """gpt2, bytes, none, or the path of a tokenizer.json or of nanoGPT's meta.pkl. Raises ConfigError and DataError."""
    if choice == "none":
        return None
    if choice == "bpe":
        raise ConfigError(
            "an own BPE cannot be trained on token files or weights; "
            "name gpt2, bytes, none, a tokenizer.json or a meta.pkl"
        )
    return read_characters(Path(choice)) if choice.endswith(".pkl") else TokenizerChoice(choice).make(())

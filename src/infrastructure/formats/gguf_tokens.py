"""A tokenizer in a GGUF file's metadata, as llama.cpp keeps GPT-2's: tokens by id, in its characters for bytes, and merges."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.infrastructure.tokenizer_files import as_characters, rules_of
from smallgpt.infrastructure.tokenizers import AnyTokenizer, Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, CONTROL, UNUSED = 1, 3, 5
"""Types of tokens: of text, special, and for an id that the tokenizer never gives."""
NO_MERGES = ["ÿ ÿ"]
"""For a tokenizer of bytes alone: llama.cpp wants a merge, and this one joins two bytes 0xFF, which no UTF-8 holds."""
SPLITTING = "gpt-2"
DEFAULT_END = 11
"""What llama.cpp takes for the end of text in a file that does not tell."""


def add_tokens(writer: "GGUFWriter", tokenizer: AnyTokenizer | None, vocab_size: int) -> tuple[str, ...]:
    """Add a tokenizer for a model of so many ids; what llama.cpp does otherwise, a sentence each.

    Raises ConfigError for a model that has none, with which llama.cpp's server would break off at the first answer, and for
    one that is not a byte-level BPE.
    """
    if tokenizer is None:
        raise ConfigError(
            "the model has no tokenizer, and llama.cpp cannot answer without one; put the tokenizer.json that it was "
            "trained with beside its weights, or choose another format"
        )
    if not isinstance(tokenizer, Tokenizer):
        raise ConfigError(
            "llama.cpp knows no tokenizer like this model's, a table of characters, so --to gguf could not turn text "
            "into its ids; choose another format"
        )
    vocabulary, merges, specials = tokenizer.rules
    name_of = dict(zip(vocabulary, as_characters(vocabulary), strict=True))
    tokens = {number: f"[PAD{number}]" for number in range(vocab_size)}
    tokens |= {number: name_of[token] for token, number in vocabulary.items()}
    tokens |= {number: name for name, number in specials.items()}
    kinds = dict.fromkeys(range(vocab_size), UNUSED) | dict.fromkeys(vocabulary.values(), NORMAL)
    kinds |= dict.fromkeys(specials.values(), CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(SPLITTING)
    writer.add_token_list(list(tokens.values()))
    writer.add_token_types(list(kinds.values()))
    writer.add_token_merges([f"{name_of[left]} {name_of[right]}" for left, right in merges] or NO_MERGES)
    writer.add_add_bos_token(False)
    if tokenizer.end_of_text is None:
        return (f"the tokenizer has no end of text, so that llama.cpp stops at id {DEFAULT_END}; give it --ignore-eos",)
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    return ()


def tokenizer_of(metadata: Mapping[str, Any], where: object) -> Tokenizer | None:
    """The tokenizer in a file's metadata; None where there is none. Raises CheckpointError for one of another kind."""
    model = metadata.get("tokenizer.ggml.model", "none")
    if model in ("none", "no_vocab"):
        return None
    if model != "gpt2":
        raise CheckpointError(f"{where} has a tokenizer of the kind {model!r}, not a byte-level BPE like GPT-2's")
    splitting = metadata.get("tokenizer.ggml.pre", SPLITTING)  # files of early 2024 do not tell
    if splitting != SPLITTING:
        raise CheckpointError(f"{where}: its tokenizer splits text as {splitting!r} does, not as GPT-2's")
    try:
        return Tokenizer(*rules_of(_document(metadata)))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where}: its tokenizer does not fit ({type(error).__name__}: {error}); fetch or export the file again"
        ) from None


def _document(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a parsed tokenizer.json."""
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    kinds = metadata["tokenizer.ggml.token_type"]
    used = [
        (token, number, kind) for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED
    ]
    vocabulary = {token: number for token, number, _ in used}
    if len(vocabulary) < len(used):
        raise ValueError("a token is there twice")
    return {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [] if merges == NO_MERGES else merges},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "added_tokens": [
            {"content": token, "id": number, "special": kind == CONTROL}
            for token, number, kind in used
            if kind != NORMAL
        ],
    }

"""`tokenizer.json`, Hugging Face's format, for the one kind of tokenizer here: a byte-level BPE that splits as GPT-2 does.

tiktoken, which runs it, merges by id, and Hugging Face's `tokenizers` by the order of the merges. The two agree when every
token has one merge and ids grow in the order of merges: true of GPT-2's file and of ours, and checked on reading.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from smallgpt.domain.errors import DataError

_REMEDY = "; give a tokenizer.json that `smallgpt prepare` wrote, or --tokenizer gpt2, bpe or bytes"

Made = TypeVar("Made")


class Rules(NamedTuple):
    """All that makes a tokenizer."""

    vocabulary: dict[bytes, int]
    """The id of every ordinary token; the 256 bytes are among them."""
    merges: list[tuple[bytes, bytes]]
    """What is merged, first come first merged: the two parts of every token of more than a byte, by its id."""
    specials: dict[str, int]
    """The id of every special token, which no text gives."""


def read_file(path: Path, make: Callable[[dict[str, Any]], Made]) -> Made:
    """Make something of a `tokenizer.json`. Raises DataError for a missing or broken file, and for what `make` refuses."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the tokenizer cannot be read ({error.strerror}){_REMEDY}") from error
    try:
        return make(_document(content))
    except ValueError as error:
        raise DataError(f"{path}: not a tokenizer that fits: {error}{_REMEDY}") from error
    except (LookupError, TypeError, AttributeError) as error:
        what = f"nothing under {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: not a tokenizer.json of this format: {what}{_REMEDY}") from error


def read_gpt2_pair(vocabulary: Path, merges: Path) -> Rules:
    """Read a `vocab.json` and `merges.txt`, as GPT-2's were before `tokenizer.json`. Raises DataError.

    A token that is no byte and that no merge makes is a special one.
    """
    try:
        ids, lines = _document(vocabulary.read_bytes()), merges.read_text(encoding="utf-8").split("\n")
        pairs = [line for line in lines if line and not line.startswith("#version")]
        made = {*_CHARACTER_OF.values(), *(pair.replace(" ", "") for pair in pairs)}
        added = [{"content": name, "id": number, "special": True} for name, number in ids.items() if name not in made]
        model = {"type": "BPE", "vocab": ids, "merges": pairs}
        splitting = {"type": "ByteLevel", "add_prefix_space": False}
        return rules_of({"model": model, "pre_tokenizer": splitting, "added_tokens": added})
    except OSError as error:
        raise DataError(f"{vocabulary}: the tokenizer cannot be read ({error.strerror}){_REMEDY}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{vocabulary} and {merges.name}: not a tokenizer that fits: {error}{_REMEDY}") from error


def write_rules(path: Path, rules: Rules) -> None:
    """Write a `tokenizer.json` that `tokenizers.Tokenizer.from_file` reads and encodes the same with."""
    name_of = dict(zip(rules.vocabulary, as_characters(rules.vocabulary), strict=True))
    vocabulary = {name_of[token]: number for token, number in rules.vocabulary.items()} | rules.specials
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        "merges": [f"{name_of[left]} {name_of[right]}" for left, right in rules.merges],
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **flags} for name, number in rules.specials.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def gpt2_rules(merges_file: bytes, end_of_text: str) -> Rules:
    """GPT-2's, from its release's vocab.bpe: the bytes in the order of their stand-ins, a token a merge, end-of-text."""
    pairs = [line.split(" ") for line in merges_file.decode().split("\n")[1:-1]]
    names = [*_CHARACTER_OF.values(), *(left + right for left, right in pairs)]
    token_of = dict(zip(names, as_bytes(names), strict=True))
    merges = [(token_of[left], token_of[right]) for left, right in pairs]
    return Rules({token: number for number, token in enumerate(token_of.values())}, merges, {end_of_text: len(names)})


def _document(content: bytes) -> dict[str, Any]:
    """The JSON object in a file; ValueError says what the file is instead."""
    if not content:
        raise ValueError("the file is empty")
    if content.startswith(b"\x80"):
        raise ValueError("a pickle, which is never opened here")
    if content.startswith(b"\n") and b"<unk>" in content[:64]:
        raise ValueError("a SentencePiece model")
    try:
        document = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("a binary file, not JSON") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cut short, or not JSON ({error})") from None
    if not isinstance(document, dict):
        raise ValueError("JSON, but not an object")
    return document


def rules_of(document: dict[str, Any]) -> Rules:
    """The tokenizer that a parsed tokenizer.json describes; ValueError says what is not supported."""
    _check_kind(document)
    model = document["model"]
    specials = _specials_of(document["added_tokens"], model["vocab"])
    names = [name for name in model["vocab"] if name not in specials]
    token_of = dict(zip(names, as_bytes(names), strict=True))
    vocabulary = {token_of[name]: model["vocab"][name] for name in names}
    _check_ids([*vocabulary.values(), *specials.values()])
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    try:
        merges = [(token_of[left], token_of[right]) for left, right in pairs]
    except KeyError as error:
        raise ValueError(f"it merges {error}, which is not in its vocabulary") from None
    _check_merges(vocabulary, merges)
    return Rules(vocabulary, merges, specials)


def checked(rules: Rules) -> Rules:
    """The rules. Raises ValueError where tiktoken and Hugging Face's `tokenizers` would not both follow them."""
    vocabulary, merges, specials = rules
    _check_ids([*vocabulary.values(), *specials.values()])
    _check_merges(vocabulary, merges)
    return rules


def _check_kind(document: dict[str, Any]) -> None:
    model, splitting = document["model"], document["pre_tokenizer"]
    kind = model["type"] if "type" in model or "merges" not in model else "BPE"  # older files leave it out
    if kind != "BPE":
        raise ValueError(f"its model is {kind}, not a byte-level BPE like GPT-2's")
    if model.get("byte_fallback"):
        raise ValueError("a BPE over characters with byte fallback, as Llama 2 has, not a byte-level one like GPT-2's")
    if splitting is None or splitting["type"] != "ByteLevel" or not splitting.get("use_regex", True):
        raise ValueError("it splits text in another way than GPT-2")
    if splitting["add_prefix_space"] or document.get("normalizer"):
        raise ValueError("it changes the text first, by a normalizer or a space before it")


def _specials_of(added: Sequence[Mapping[str, Any]], vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Special tokens by name, in the order of their ids."""
    specials = {token["content"]: token["id"] for token in sorted(added, key=lambda token: token["id"])}
    for token in added:
        name, number = token["content"], token["id"]
        if not token.get("special"):
            raise ValueError(f"its added token {name!r} would be looked for in every text; only special ones are read")
        if specials[name] != number or vocabulary.get(name, number) != number:
            raise ValueError(f"its special token {name!r} has two ids")
    return specials


def _check_ids(ids: list[Any]) -> None:
    """ValueError unless they are 0, 1, 2, ... in some order."""
    if any(type(number) is not int for number in ids):
        raise ValueError("some ids are not whole numbers")
    seen = set(ids)
    if len(seen) < len(ids):
        twice = next(number for number, after in pairwise(sorted(ids)) if number == after)
        raise ValueError(f"two of its tokens have id {twice}")
    if seen != set(range(len(ids))):
        missing = next(number for number in range(len(ids)) if number not in seen)
        raise ValueError(f"it has {len(ids)} tokens, but none with id {missing}")


def _check_merges(vocabulary: Mapping[bytes, int], merges: list[tuple[bytes, bytes]]) -> None:
    if any(bytes([byte]) not in vocabulary for byte in range(256)):
        raise ValueError("some bytes have no token")
    if len(vocabulary) != 256 + len(merges) or any(left + right not in vocabulary for left, right in merges):
        raise ValueError(f"{len(vocabulary) - 256} tokens of two bytes or more, but {len(merges)} merges")
    if any(after <= before for before, after in pairwise(vocabulary[left + right] for left, right in merges)):
        raise ValueError("its ids do not follow the order of the merges")


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where Latin-1 prints it, else the next of U+0100, U+0101, ..."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


class _Bytes(dict[int, int]):
    """The byte behind each stand-in, by its code point."""

    def __missing__(self, character: int) -> int:
        raise ValueError(f"a token with {chr(character)!r}, which stands for no byte")


_CHARACTER_OF = _byte_characters()
_BYTE_OF = _Bytes({ord(character): byte for byte, character in _CHARACTER_OF.items()})


def as_characters(tokens: Collection[bytes]) -> list[str]:
    """Tokens as a tokenizer.json spells them. All at once: 50,000 calls for one each would take longer than the rest."""
    spelled = b"".join(tokens).decode("latin-1").translate(_CHARACTER_OF)
    return [spelled[place] for place in _places(tokens)]


def as_bytes(names: Sequence[str]) -> list[bytes]:
    """The tokens behind their names in a tokenizer.json."""
    content = "".join(names).translate(_BYTE_OF).encode("latin-1")
    return [content[place] for place in _places(names)]


def _places(parts: Iterable[bytes] | Iterable[str]) -> Iterator[slice]:
    """Where each part is in all of them together."""
    return (slice(start, end) for start, end in pairwise(accumulate(map(len, parts), initial=0)))

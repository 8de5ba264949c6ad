"""tokenizer.pkl: a tiktoken Encoding in a pickle, read without executing it, and written as tiktoken itself would be.

Such a pickle holds either the name of an encoding that tiktoken knows, or its name, pattern, ranks and special tokens.
tiktoken needs no list of merges, since it merges the pair with the lowest rank; here it is found again from the ranks.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiktoken

from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.formats.safe_pickle import BUILDING, Made, read_pickle
from smallgpt.infrastructure.tokenizer_files import Rules, checked
from smallgpt.infrastructure.tokenizers import PATTERN, Tokenizer, gpt2_tokenizer

ENCODING = "tiktoken.core.Encoding"
PATTERNS = {
    PATTERN,
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
"""GPT-2's, as tiktoken has written it over its versions: the pieces are the same."""
LONGEST_TOKEN = 1024
"""Bytes; finding the merges of a longer one would take long."""
MOST_WORK = 2**26
"""Sum of the squares of the tokens' lengths, by which finding all merges takes: some ten seconds."""


def read_encoding(path: Path) -> Tokenizer:
    """The tokenizer in a pickled Encoding. Nothing is executed; raises CheckpointError for anything else, and names it."""
    try:
        return _tokenizer(read_pickle(path, BUILDING | {ENCODING}))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not a pickled tiktoken Encoding: {error}.\nNothing in it was run; --tokenizer names another one."
        ) from None


def write_encoding(tokenizer: Tokenizer, path: Path) -> None:
    """Pickle it as a whole Encoding, which unpickles without tiktoken's files."""
    encoding = tiktoken.Encoding(
        tokenizer.name,
        pat_str=PATTERN,
        mergeable_ranks=tokenizer.rules.vocabulary,
        special_tokens=dict(tokenizer.specials),
    )
    path.write_bytes(pickle.dumps(encoding, protocol=4))


def _tokenizer(content: Any) -> Tokenizer:
    if not isinstance(content, Made) or content.name != ENCODING:
        raise ValueError(f"it holds a {content.name if isinstance(content, Made) else type(content).__name__}")
    match content.state:
        case "gpt2":
            return gpt2_tokenizer()
        case str(name):
            raise ValueError(f"it is tiktoken's {name[:100]!r}, and only its 'gpt2' is known here")
        case {"name": str(), "pat_str": str(pattern), "mergeable_ranks": dict(ranks), "special_tokens": dict(specials)}:
            _check(pattern, ranks, specials)
            return Tokenizer(*checked(Rules(ranks, merges_of(ranks), specials)))
    raise ValueError("it does not hold a name, a pattern, ranks and special tokens")


def _check(pattern: str, ranks: Mapping[Any, Any], specials: Mapping[Any, Any]) -> None:
    if pattern not in PATTERNS:
        raise ValueError(f"it splits text in another way than GPT-2, by {pattern[:100]!r}")
    if not all(type(token) is bytes and 0 < len(token) <= LONGEST_TOKEN for token in ranks):
        raise ValueError(f"its tokens are not all of 1 to {LONGEST_TOKEN} bytes")
    if sum(len(token) ** 2 for token in ranks) > MOST_WORK:
        raise ValueError("its tokens are longer, all in all, than those of a vocabulary")
    if not all(type(name) is str and name for name in specials):
        raise ValueError("its special tokens are not all text")
    if not all(type(number) is int for number in [*ranks.values(), *specials.values()]):
        raise ValueError("some ids are not whole numbers")


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge behind every token of two bytes or more, in the order of ranks.

    What lower ranks alone make of a token's bytes are the two parts that its own merge joins. Raises ValueError where they
    are not two, so that no text would ever give the token.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = _merged(token, ranks, rank)
        if len(parts) != 2:
            raise ValueError(f"no merge of lower ranks gives its token {token[:20]!r}")
        merges.append((parts[0], parts[1]))
    return merges


def _merged(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """The token's bytes, merged with ranks below one alone: the lowest first, of equal ones the leftmost."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 1:
        pairs = ((ranks.get(parts[at] + parts[at + 1], below), at) for at in range(len(parts) - 1))
        rank, at = min(pairs)
        if rank >= below:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts

"""Trimming a tokenizer to the ids that a corpus uses."""

import numpy as np
import numpy.typing as npt

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.tokenizers import AnyTokenizer, Tokenizer

NO_ID = np.iinfo(np.uint32).max
"""Stands in a renumbering for an id that was left out."""


def trim(
    tokenizer: AnyTokenizer, used: npt.NDArray[np.integer] | npt.NDArray[np.bool_]
) -> tuple[Tokenizer, npt.NDArray[np.uint32]]:
    """The tokenizer with the used ids alone, the 256 bytes and what the used ids are merged from, and its new ids.

    used: ids in any order, or a mask (vocab_size,). The renumbering is (vocab_size,) uint32: new ids by old ones, NO_ID
    for what was left out; ordinary ids keep their order, the specials come last. Raises DataError for an unknown id, and
    ConfigError for a table of characters, which has no bytes to fall back on.

    A text whose ids are all used gets exactly their new ids. For whatever is merged on the way ends up inside one of these
    ids, where the merges are those of that id's bytes alone, so all of them are kept; and as the order is kept too, the
    merge that came first among all tokens comes first among the fewer. Other text is split further, at worst into bytes.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise ConfigError(
            "a table of characters is not trimmed, as nothing would stand for the others; leave --vocab-trim out"
        )
    vocabulary, merges, specials = tokenizer.rules
    kept = np.zeros(tokenizer.vocab_size, dtype=bool)
    if used.dtype != bool and used.size and used.max() >= len(kept):
        raise DataError(f"token id {used.max()} is not this tokenizer's, which has {len(kept)} ids; name the right one")
    kept[used] = True
    kept[[vocabulary[bytes([byte])] for byte in range(256)]] = True
    for left, right in reversed(merges):  # a token's parts come before it
        if kept[vocabulary[left + right]]:
            kept[[vocabulary[left], vocabulary[right]]] = True

    tokens = sorted((token for token, number in vocabulary.items() if kept[number]), key=vocabulary.__getitem__)
    renumber = np.full(tokenizer.vocab_size, NO_ID, dtype=np.uint32)
    renumber[[vocabulary[token] for token in tokens]] = np.arange(len(tokens))
    renumber[list(specials.values())] = np.arange(len(tokens), len(tokens) + len(specials))
    trimmed = Tokenizer(
        {token: number for number, token in enumerate(tokens)},
        [(left, right) for left, right in merges if kept[vocabulary[left + right]]],
        {name: int(renumber[number]) for name, number in specials.items()},
    )
    return trimmed, renumber

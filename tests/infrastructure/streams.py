"""Streams in memory, in as many parts as a test wants."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from smallgpt.infrastructure.tokens import Ids, Places, TokenPart, Tokens


def stream(ids: Ids, borders: Sequence[int] = (), vocab_size: int = 2**32) -> Tokens:
    """The ids as one stream, cut into parts at the borders."""
    pieces = [ids[low:high] for low, high in pairwise([0, *borders, len(ids)])]
    parts = [TokenPart("memory/train.bin", len(piece), partial(_same, piece)) for piece in pieces]
    return Tokens(parts, str(ids.dtype), vocab_size)


def _same(ids: Ids) -> Ids:
    return ids


def counting_documents(lengths: Sequence[int], end_of_text: int) -> tuple[Ids, Places]:
    """(ids, starts) of documents whose ids count up from 0 through the stream, each closed by an end-of-text."""
    ids: list[int] = []
    starts, number = [], 0
    for length in lengths:
        starts.append(len(ids))
        ids += [*range(number, number + length), end_of_text]
        number += length
    return np.array(ids, dtype=np.uint32), np.array(starts, dtype=np.int64)

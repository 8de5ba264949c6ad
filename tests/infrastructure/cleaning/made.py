"""Splits made of lists of ids."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from smallgpt.infrastructure.cleaning.documents import DocumentTokens, Piece

END = 60_000


def split_of(documents: Sequence[Sequence[int]], *, pieces: int = 1, end_of_text: int | None = END) -> DocumentTokens:
    """A split of these documents, in so many streams."""
    borders = [len(documents) * at // pieces for at in range(pieces + 1)]
    made = []
    for low, high in pairwise(borders):
        ended = [[*each, end_of_text] if end_of_text is not None else list(each) for each in documents[low:high]]
        tokens = np.array([each for ids in ended for each in ids], dtype=np.uint16)
        starts = np.cumsum([0, *map(len, ended)], dtype=np.int64)[:-1]
        made.append(Piece(tokens, starts))
    return DocumentTokens(tuple(made), end_of_text)

"""Ranges of a file's bytes that a format says hold its tensors."""

from collections.abc import Iterable
from itertools import pairwise


def overlap(ranges: Iterable[tuple[int, int, str]]) -> tuple[str, str] | None:
    """(first byte, size, name) of each -> the names of two that share bytes, if any do.

    A file whose tensors share bytes describes far more numbers than it holds: reading them could take all memory.
    """
    for (start, size, name), (following, _, other) in pairwise(sorted(ranges)):
        if following < start + size:
            return name, other
    return None

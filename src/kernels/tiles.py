"""The tile tables: which block sizes, warps and pipeline stages a kernel gets on which hardware.

A table is `tiles.json` in the operation's folder, a list of entries keyed by (kernel, architecture, size, bits): `size` is
the power of two that the head size or width is padded to, `bits` the width of the dtype. Nothing is tuned while training
runs; `python -m smallgpt.kernels.tuning` writes the tables.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from json import loads

Tile = dict[str, int]
"""A kernel's block sizes by name, with num_warps and num_stages."""

_forced: dict[tuple[str, str], Tile] = {}


def tile(operation: str, kernel: str, architecture: str, size: int, bits: int) -> Tile | None:
    """The entry of a kernel ("forward", ...), or None where the table has none: that variant does not fit there."""
    if (operation, kernel) in _forced:
        return _forced[operation, kernel]
    return table(operation).get((kernel, architecture, size, bits))


@cache
def table(operation: str) -> dict[tuple[str, str, int, int], Tile]:
    """All entries of an operation's table."""
    entries = loads(files("smallgpt.kernels").joinpath(operation, "tiles.json").read_text(encoding="utf-8"))
    return {(e["kernel"], e["architecture"], e["size"], e["bits"]): e["tile"] for e in entries}


@contextmanager
def forced(operation: str, kernel: str, entry: Tile) -> Iterator[None]:
    """Use `entry` whatever the table says: for the tuner, and for tests of unusual tiles."""
    global _forced
    previous, _forced = _forced, _forced | {(operation, kernel): entry}
    try:
        yield
    finally:
        _forced = previous

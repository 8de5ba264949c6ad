"""How many rows, and how many warps, a layer-norm program gets.

A rule, the same on every GPU, because nothing here multiplies matrices.
A program reads about ELEMENTS numbers at once: enough bytes in flight to fill the memory pipe at small widths, few enough
that a row's fp32 copies stay in registers at large ones (`smallgpt kernels compile` shows that none is spilled).
"""

from dataclasses import dataclass

from smallgpt.kernels.language import triton

MAX_WIDTH = 8192


@dataclass(frozen=True)
class RowRule:
    """`elements` a tile in at most `rows` rows, `a_thread` of them a thread."""

    elements: int
    rows: int
    a_thread: int


FORWARD = RowRule(elements=4096, rows=128, a_thread=16)
BACKWARD = RowRule(elements=1024, rows=16, a_thread=16)  # five tiles of fp32 are alive: x, dy, dx and the two sums


def row_tile(rule: RowRule, width: int) -> dict[str, int]:
    """The constants of a launch over rows of `width`, num_warps and num_stages included."""
    columns = triton.next_power_of_2(width)
    rows = max(1, min(rule.rows, rule.elements // columns))
    warps = max(1, min(32, rows * columns // (rule.a_thread * 32)))
    return {"BLOCK_ROWS": rows, "BLOCK_C": columns, "num_warps": warps, "num_stages": 2}

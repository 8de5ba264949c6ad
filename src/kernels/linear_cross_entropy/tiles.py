"""Tiles by rule, for the kernels that multiply no matrices: the same on every GPU but for what a warp is."""

from smallgpt.kernels.language import triton

LONGEST_IN_REGISTERS = 64 * 1024  # bytes; twice as long, rows spill
A_THREAD = 32  # numbers


def row_tile(width: int, item_bytes: int, architecture: str) -> tuple[bool, dict[str, int]]:
    """For rows of `width` logits: whether they fit in registers, and the constants of the launch."""
    lanes = 64 if architecture.startswith("gfx") else 32
    block = triton.next_power_of_2(width)
    if block * item_bytes <= LONGEST_IN_REGISTERS:
        return True, {"BLOCK_V": block, "num_warps": max(4, block // (A_THREAD * lanes)), "num_stages": 1}
    return False, {"BLOCK_V": 8192, "num_warps": 512 // lanes, "num_stages": 1}


def finish_tile(width: int) -> dict[str, int]:
    """For rows of x, `width` wide: some 2,048 numbers at once."""
    columns = triton.next_power_of_2(width)
    return {"BLOCK_ROWS": max(1, min(32, 2048 // columns)), "BLOCK_C": columns, "num_warps": 4, "num_stages": 1}

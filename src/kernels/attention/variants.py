"""What the compile gate compiles of attention, and which tiles the tuner tries for it."""

from collections.abc import Iterator
from functools import partial

import torch

from smallgpt.kernels.attention import fused
from smallgpt.kernels.launching import Variant
from smallgpt.kernels.tiles import Tile

HEAD_SIZES = (32, 64, 128)  # one for each size in the table
PADDED_HEAD_SIZES = (16, 48, 80, 96)  # masked columns
SEQUENCES = (64, 128, 1024)  # the two single tiles, and two stages


def variants() -> Iterator[Variant]:
    """Every entry of the table in its dtypes, with and without dropout; padded heads and odd lengths in bf16."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for head_size in HEAD_SIZES:
            for tokens in SEQUENCES:
                yield from _with_and_without_dropout(tokens, head_size, dtype)
    for head_size in PADDED_HEAD_SIZES:
        yield from _with_and_without_dropout(1024, head_size, torch.bfloat16)
    yield from _with_and_without_dropout(100, 64, torch.bfloat16)
    yield from _with_and_without_dropout(1023, 64, torch.bfloat16)


def _with_and_without_dropout(tokens: int, head_size: int, dtype: torch.dtype) -> Iterator[Variant]:
    for dropout in (0.0, 0.1):
        name = f"T={tokens} D={head_size} {str(dtype).removeprefix('torch.')}{' dropout' if dropout else ''}"
        yield Variant(name, partial(run, tokens, head_size, dtype, dropout))


def run(tokens: int, head_size: int, dtype: torch.dtype, dropout: float, device: str = "meta") -> None:
    """Forward and backward at a size that fills a GPU: 64 sequences of 8 heads."""
    qkv = torch.empty(64, tokens, 3, 8, head_size, dtype=dtype, device=device)
    seed = torch.ones(1, dtype=torch.int64, device=device) if dropout else None
    y, lse = fused.launch_forward(qkv, seed, dropout)
    saved = (y, lse) if lse.numel() else (None, None)
    fused.launch_backward(y, qkv, *saved, seed, dropout)


def candidates(kernel: str, architecture: str, size: int, bits: int) -> list[Tile]:
    """Tiles to try, best guess first: the sizes that others publish for such GPUs, then ever smaller ones."""
    kernel = kernel.removesuffix("_dropout")
    if kernel == "two_stage_forward":
        names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")
        found = _forward(architecture) if bits == 16 else FORWARD_32
    elif kernel == "two_stage_backward":
        names = ("BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2", "num_warps", "num_stages")
        found = _backward(architecture) if bits == 16 else BACKWARD_32[size > 64 :]
    else:
        names = ("BLOCK_M", "num_warps", "num_stages")
        found = ONE_TILE[int(kernel.rsplit("_", 1)[1])] if bits == 16 else []
    return [dict(zip(names, numbers, strict=True)) for numbers in found]


# Tensor cores of Hopper and later want 64 or 128 rows; FlexAttention's and FlashAttention-2's defaults come first.
def _forward(architecture: str) -> list[tuple[int, ...]]:
    large = [(128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 3)]
    medium = [(128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 2)]
    return (large if architecture in ("sm_90", "sm_100") else []) + medium + [(32, 32, 4, 2), (32, 32, 4, 1)]


def _backward(architecture: str) -> list[tuple[int, ...]]:
    large = [(64, 128, 128, 64, 8, 3), (64, 128, 128, 64, 8, 2), (64, 128, 128, 64, 8, 1)]
    medium = [(64, 64, 64, 64, 4, 2), (64, 64, 64, 64, 8, 2), (32, 128, 128, 32, 8, 2), (32, 64, 64, 32, 4, 2)]
    small = [(32, 64, 64, 32, 8, 2), (32, 64, 64, 32, 8, 1), (32, 32, 32, 32, 4, 2), (16, 32, 32, 16, 4, 1)]
    return (large if architecture in ("sm_90", "sm_100") else []) + medium + small


# Full-precision products are fused multiply-adds over whole operand rows in registers: small tiles, many warps, and no
# single tile: at 64 tokens its backward pass already spills 200 bytes a thread or more, whatever the warps.
FORWARD_32 = [(64, 32, 8, 2), (32, 32, 8, 2), (32, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1)]
BACKWARD_32 = [(32, 32, 32, 32, 8, 1), (16, 16, 16, 16, 8, 1), (16, 32, 32, 16, 4, 1), (16, 16, 16, 16, 4, 1)]
ONE_TILE = {
    64: [(64, 4, 1), (64, 8, 1), (32, 4, 1), (32, 8, 1), (16, 8, 1)],
    128: [(128, 8, 1), (64, 8, 1), (64, 4, 1), (32, 8, 1), (16, 8, 1)],
}

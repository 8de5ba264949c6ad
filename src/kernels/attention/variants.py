"""What the compile gate compiles of attention, and which tiles the tuner tries for it."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from smallgpt.kernels.attention import fused
from smallgpt.kernels.launching import Tunable, Variant
from smallgpt.kernels.tiles import Tile

HEAD_SIZES = (32, 64, 128)  # one for each size in the table
PADDED_HEAD_SIZES = (16, 48, 80, 96)  # masked columns
SEQUENCES = (64, 128, 1024)  # the two single tiles, and two stages


def variants() -> Iterator[Variant]:
    """Every entry of the table with and without dropout; fp16, which shares bf16's entries, at the commonest head size."""
    for head_size in HEAD_SIZES:
        for tokens in SEQUENCES:
            yield from _with_and_without_dropout(tokens, head_size, torch.bfloat16)
        yield from _with_and_without_dropout(1024, head_size, torch.float32)
        for dropout in (0.0, 0.1):
            name = f"T=1024 D={head_size} tf32{' dropout' if dropout else ''}"
            yield Variant(name, partial(_run_with_tf32, partial(run, 1024, head_size, torch.float32, dropout)))
    for tokens in SEQUENCES:
        yield from _with_and_without_dropout(tokens, 64, torch.float16)
    for head_size in PADDED_HEAD_SIZES:
        yield from _with_and_without_dropout(1024, head_size, torch.bfloat16)
    for tokens in (100, 1023):  # of which nothing is a multiple of 16
        yield from _with_and_without_dropout(tokens, 64, torch.bfloat16)
    yield Variant("one token", _run_one_token)
    yield from _decoding()


def _decoding() -> Iterator[Variant]:
    """One query and few, all keys in one split and in several, with lengths and without."""
    for dtype in (torch.bfloat16, torch.float32):
        for head_size in HEAD_SIZES:
            for queries in (1, 4):
                name = f"decode T={queries} D={head_size} {str(dtype).removeprefix('torch.')}"
                yield Variant(name, partial(run_cached, queries, head_size, dtype))
                if head_size == 64 or (head_size == 128 and dtype == torch.bfloat16):  # the rest is alike
                    yield Variant(f"{name} split", partial(run_cached, queries, head_size, dtype, sequences=1, heads=1))
    for queries in (1, 4):
        name = f"decode T={queries} D=64"
        yield Variant(f"{name} float16", partial(run_cached, queries, 64, torch.float16))
        yield Variant(f"{name} tf32", partial(_run_with_tf32, partial(run_cached, queries, 64, torch.float32)))
        # nothing is a multiple of 16; every row has the same length; the cache is wider than what autocast makes of q
        yield Variant(f"{name} odd", partial(run_cached, queries, 64, torch.bfloat16, slots=1023))
        yield Variant(f"{name} padded", partial(run_cached, queries, 48, torch.bfloat16))
        mixed = partial(run_cached, queries, 64, torch.bfloat16, of_cache=torch.float32)
        yield Variant(f"{name} bfloat16 on float32", mixed)
    for slots, sequences in ((1024, 64), (1023, 1), (1, 1)):
        name = f"decode S={slots} B={sequences} without lengths"
        yield Variant(name, partial(run_cached, 1, 64, torch.bfloat16, slots=slots, sequences=sequences, ragged=False))


def _with_and_without_dropout(tokens: int, head_size: int, dtype: torch.dtype) -> Iterator[Variant]:
    for dropout in (0.0, 0.1):
        name = f"T={tokens} D={head_size} {str(dtype).removeprefix('torch.')}{' dropout' if dropout else ''}"
        yield Variant(name, partial(run, tokens, head_size, dtype, dropout))


def _run_with_tf32(run: Callable[[], object]) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        run()
    finally:
        torch.set_float32_matmul_precision(before)


def _run_one_token() -> None:
    """Every count is 1, which Triton compiles as a constant."""
    for dtype in (torch.bfloat16, torch.float32):  # one tile, and two stages
        run(1, 64, dtype, 0.0, sequences=1, heads=1)


def tunables() -> Iterator[Tunable]:
    """Every entry of the table."""
    for size in HEAD_SIZES:
        for bits, dtype in ((16, torch.float16), (32, torch.float32)):
            for dropout in (0.0, 0.1):
                for kernel, tokens in (("one_tile_{}_64", 64), ("one_tile_{}_128", 128), ("two_stage_{}", 1024)):
                    for index, direction in enumerate(("forward", "backward")):
                        name = kernel.format(direction) + ("_dropout" if dropout else "")
                        yield Tunable(name, size, bits, partial(run, tokens, size, dtype, dropout), index)
            for kernel, queries in (("one_query", 1), ("few_queries", 4)):
                yield Tunable(kernel, size, bits, partial(run_cached, queries, size, dtype), 0)


def run(
    tokens: int,
    head_size: int,
    dtype: torch.dtype,
    dropout: float,
    device: str = "meta",
    sequences: int = 64,
    heads: int = 8,
) -> None:
    """Forward and backward, by default at a size that fills a GPU."""
    qkv = torch.empty(sequences, tokens, 3, heads, head_size, dtype=dtype, device=device)
    seed = torch.ones(1, dtype=torch.int64, device=device) if dropout else None
    y, lse = fused.launch_forward(qkv, seed, dropout)
    kept = lse.numel() > 0
    fused.launch_backward(y, qkv, y if kept else None, lse if kept else None, seed, dropout)


def run_cached(
    queries: int,
    head_size: int,
    dtype: torch.dtype,
    device: str = "meta",
    sequences: int = 64,
    heads: int = 8,
    slots: int = 1024,
    ragged: bool = True,
    of_cache: torch.dtype | None = None,
) -> None:
    """Decoding, in the layout that domain.cache has, by default with so many heads that no keys are split."""
    qkv = torch.empty(sequences, queries, 3, heads, head_size, dtype=dtype, device=device)
    shape = (2, sequences, heads, slots, head_size)
    k, v = torch.zeros(shape, dtype=of_cache or dtype, device=device).transpose(2, 3)
    lengths = torch.full((sequences,), slots, device=device) if ragged else None
    fused.launch_cached(qkv[:, :, 0], k, v, lengths)


def candidates(kernel: str, architecture: str, size: int, bits: int) -> list[Tile]:
    """Tiles to try, best guess first: the sizes that others publish for such GPUs, then ever smaller ones."""
    large = architecture in ("sm_90", "sm_100")  # whose tensor cores want 64 or 128 rows at a time
    fma = bits == 32 or architecture == "sm_75"
    kernel = kernel.removesuffix("_dropout")
    if kernel == "two_stage_forward":
        names = "BLOCK_M BLOCK_N num_warps num_stages"
        # On sm_100 Triton 3.7.1 can round exact products to TF32 where M is 64 or more (the compile gate found it).
        found = FORWARD_FMA[architecture == "sm_100" :] if fma else LARGE_FORWARD * large + FORWARD
    elif kernel == "two_stage_backward":
        names = "BLOCK_M1 BLOCK_N1 BLOCK_M2 BLOCK_N2 num_warps num_stages"
        found = BACKWARD_FMA if fma else LARGE_BACKWARD * large + BACKWARD
    elif kernel == "one_query":
        names = "BLOCK_N num_warps num_stages"
        found = [(keys // size, warps, 1) for keys, warps in ONE_QUERY]
    elif kernel == "few_queries":
        names = "BLOCK_M BLOCK_N num_warps num_stages"
        found = FEW_QUERIES_FMA if fma else FEW_QUERIES
    else:
        names = "BLOCK_M num_warps num_stages"
        found = ONE_TILE[int(kernel.rsplit("_", 1)[1])] if not fma else []
    return [dict(zip(names.split(), numbers, strict=True)) for numbers in found]


Numbers = list[tuple[int, ...]]
# FlexAttention's and FlashAttention-2's own choices come first.
LARGE_FORWARD: Numbers = [(128, 128, 8, 3), (128, 128, 8, 2)]
FORWARD: Numbers = [
    (128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 1),
]  # fmt: skip
LARGE_BACKWARD: Numbers = [(64, 128, 128, 64, 8, 3), (64, 128, 128, 64, 8, 2), (64, 128, 128, 64, 8, 1)]
BACKWARD: Numbers = [
    (64, 64, 64, 64, 4, 2), (64, 64, 64, 64, 8, 2), (32, 128, 128, 32, 8, 2), (32, 64, 64, 32, 4, 2),
    (32, 64, 64, 32, 8, 2), (32, 64, 64, 32, 8, 1), (32, 32, 32, 32, 4, 2), (16, 32, 32, 16, 4, 1),
]  # fmt: skip
ONE_TILE: dict[int, Numbers] = {
    64: [(64, 4, 1), (64, 8, 1), (32, 4, 1), (32, 8, 1), (16, 8, 1)],
    128: [(128, 8, 1), (64, 8, 1), (64, 4, 1), (32, 8, 1), (16, 8, 1)],
}
# Exact products, and all on sm_75, are fused multiply-adds over operand rows in registers: small tiles, and two stages, with
# which the rows come out of shared memory. A single tile spills, whatever the warps.
FORWARD_FMA: Numbers = [(64, 32, 8, 2), (32, 32, 8, 2), (32, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1)]
BACKWARD_FMA: Numbers = [(32, 32, 32, 32, 8, 2), (16, 32, 32, 16, 8, 2), (16, 16, 16, 16, 8, 2), (16, 16, 16, 16, 8, 1)]
# Elements of k in a tile, and warps: as much as registers hold is in flight at once.
ONE_QUERY: Numbers = [(8192, 8), (4096, 4), (4096, 8), (2048, 4)]
FEW_QUERIES: Numbers = [(16, 128, 4, 2), (16, 64, 4, 3), (16, 64, 4, 2), (16, 32, 4, 2), (16, 32, 4, 1)]
FEW_QUERIES_FMA: Numbers = [(16, 64, 8, 2), (16, 32, 8, 2), (16, 32, 4, 2), (16, 16, 4, 2), (16, 16, 4, 1)]

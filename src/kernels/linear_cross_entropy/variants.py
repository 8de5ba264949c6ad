"""What the compile gate compiles of linear + cross-entropy, and which tiles the tuner measures."""

from collections.abc import Iterator
from functools import partial

import torch

from smallgpt.kernels.gpus import GPUS
from smallgpt.kernels.launching import DTYPES, Tunable, Variant
from smallgpt.kernels.linear_cross_entropy import chunked, flash
from smallgpt.kernels.tiles import Tile

SIZES = (16, 32, 64, 128, 256, 384)
PADDED = {16: 8, 32: 24, 64: 48, 128: 96, 256: 192, 384: 320}  # a width that does not fill each size
VOCABULARIES = (50304, 50257, 32000, 4096, 128256, 1001)


def variants() -> Iterator[Variant]:
    """Every entry of the tile table in its leanest and in its fullest form, and the row kernels at usual vocabularies."""
    for size in SIZES:
        for dtype in DTYPES:
            word = str(dtype).removeprefix("torch.")
            precisions = ("highest", "high") if dtype == torch.float32 else ("highest",)
            yield Variant(f"flash, width {size} {word}", partial(_lean, size, dtype))
            for precision in precisions:
                name = f"flash, width {PADDED[size]} {word} {precision}, odd sizes and all options"
                yield Variant(name, partial(_full, PADDED[size], dtype, precision))
    yield Variant("flash, loss only", partial(_loss_only, 256, torch.bfloat16))
    yield Variant("flash, one row", partial(_full, 64, torch.bfloat16, "highest", 1, 1))
    for vocabulary in VOCABULARIES:
        for dtype in DTYPES:
            name = f"chunked, vocabulary {vocabulary} {str(dtype).removeprefix('torch.')}"
            yield Variant(name, partial(_rows, vocabulary, dtype, 0.0))
            yield Variant(f"{name}, all options", partial(_rows, vocabulary, dtype, 0.1))
    yield Variant("chunked, one row", partial(_rows, 1, torch.bfloat16, 0.1, 1))


def tunables() -> Iterator[Tunable]:
    """Every entry of the table."""
    for size in SIZES:
        for bits, dtype in ((16, torch.float16), (32, torch.float32)):
            for kernel, index in (("forward", 0), ("weight_gradient", -1)):
                yield Tunable(kernel, size, bits, partial(_tune, size, dtype), index)


def _tune(size: int, dtype: torch.dtype, device: str) -> None:
    """What is compiled is the form that needs most registers; what is timed, the usual one."""
    if device == "meta":
        _full(PADDED[size], dtype, "highest")
    else:
        _flash(size, dtype, 8192, 50304, 0.0, device)


def candidates(kernel: str, architecture: str, size: int, bits: int) -> list[Tile]:
    """Tiles of a flash kernel worth trying, those expected to be best first; the compiler still refuses some.

    One side of a tile stays in place (rows in `forward`, ids in `weight_gradient`) and its sums in registers; the other
    streams by through shared memory. The longer the side that stays, the less often the other is read again. Slivers of
    16 come last.
    """
    stays, passes = ("BLOCK_ROWS", "BLOCK_V") if kernel == "forward" else ("BLOCK_V", "BLOCK_ROWS")
    lanes = 64 if architecture.startswith("gfx") else 32
    # Sums that a thread may have: without tensor cores the operands need registers too; and few are no work for a warp.
    tensor_cores = bits == 16 and architecture != "sm_75"
    least, most = (16, 176) if tensor_cores else (0, 64)
    small = (16,) if size >= 256 or not tensor_cores else ()
    found = []
    for staying in ((128, 64, 32) if tensor_cores else (64, 32)) + small:
        for passing in ((64, 128, 32) if tensor_cores else (32,)) + small:
            for warps in (8, 4) if staying == 128 else (4, 8):
                sums = staying * (size + passing) // (lanes * warps)
                for stages in _stages(architecture):
                    rows = max(staying, passing) if lanes == 64 else staying + stages * passing  # AMD's go to registers
                    shared = rows * size * bits // 8
                    if least <= sums <= most and shared <= GPUS[architecture].shared_limit:
                        found.append({stays: staying, passes: passing, "num_warps": warps, "num_stages": stages})
    return sorted(found, key=lambda tile: tile[passes] == 16)


def _stages(architecture: str) -> tuple[int, ...]:
    if architecture == "sm_75":
        return (1,)  # no asynchronous copies there
    return (3, 2) if GPUS[architecture].shared_limit > 128 * 1024 else (2,)


def _lean(width: int, dtype: torch.dtype) -> None:
    _flash(width, dtype, 8192, 50304, 0.0)


def _full(width: int, dtype: torch.dtype, precision: str, n_rows: int = 8191, n_ids: int = 50257) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        _flash(width, dtype, n_rows, n_ids, 0.1)
    finally:
        torch.set_float32_matmul_precision(before)


def _flash(width: int, dtype: torch.dtype, n_rows: int, n_ids: int, smoothing: float, device: str = "meta") -> None:
    x, weight, targets = _operands(n_rows, n_ids, width, dtype, device)
    z_loss = smoothing / 100
    losses, highest, log_sum, _ = flash.launch_flash(x, weight, targets, smoothing, -100, z_loss, True)
    share = losses if smoothing else None
    flash.launch_flash_dweight(x, weight, targets, highest, log_sum, losses[0], share, smoothing, -100, z_loss, dtype)


def _loss_only(width: int, dtype: torch.dtype) -> None:
    flash.launch_flash(*_operands(8192, 50304, width, dtype), 0.0, -100, 0.0, False)


def _rows(vocabulary: int, dtype: torch.dtype, smoothing: float, n_rows: int = 64) -> None:
    x, weight, targets = _operands(n_rows, vocabulary, 64, dtype)
    share = torch.empty(n_rows, device="meta") if smoothing else None
    chunked.launch_chunked(x, weight, targets, share, smoothing, -100, smoothing / 100, True, True)


def _operands(
    n_rows: int, n_ids: int, width: int, dtype: torch.dtype, device: str = "meta"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, weight = (torch.empty(n, width, dtype=dtype, device=device) for n in (n_rows, n_ids))
    return x, weight, torch.zeros(n_rows, dtype=torch.int64, device=device)

"""What the compile gate compiles of layer norm: every width class, aligned and not, in every dtype."""

from collections.abc import Iterator
from functools import partial

import torch

from smallgpt.kernels.launching import DTYPES, Variant
from smallgpt.kernels.layer_norm import fused

WIDTHS = (32, 256, 384, 768, 1023, 2048, 4096, 8192)  # 1023: rows that no vector load is aligned to


def variants() -> Iterator[Variant]:
    """Forward with the fused addition, and backward with both gradients: the fullest form of each kernel."""
    for width in WIDTHS:
        for dtype in DTYPES:
            name = f"width {width} {str(dtype).removeprefix('torch.')}"
            yield Variant(name, partial(_run, 4096, width, dtype))
    # Triton makes a constant of every count that is 1
    yield Variant("one row, width 256 float32", partial(_run, 1, 256, torch.float32))
    yield Variant("one row, width 1 float32", partial(_run, 1, 1, torch.float32))


def _run(rows: int, width: int, dtype: torch.dtype) -> None:
    x = torch.empty(rows, width, dtype=dtype, device="meta")
    weight = torch.empty(width, device="meta")
    total, _, mean, rstd = fused.launch_add_layer_norm(x, x, weight, weight, 1e-5, dtype)
    fused.launch_backward(x, x, total, weight, mean, rstd)

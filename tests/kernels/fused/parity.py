"""When a kernel is right: it is as near to float64 as the plain formula in the kernel's own dtype."""

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else []))
# What may be added to twice the eager error, because that can be zero: roundings of numbers around 1.
FLOOR = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}

# The same numbers, elsewhere in memory.
STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "rows apart": lambda x: torch.cat([x, x], -1)[..., : x.size(-1)],
    "columns apart": lambda x: torch.stack([x, x], -1)[..., 0],
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch and tokens exchanged": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


def assert_as_good_as_eager(
    found: Tensor | None, eager: Tensor | None, exact: Tensor | None, dtype: torch.dtype, name: str
) -> None:
    """max|found - exact| <= 2 max|eager - exact| + FLOOR[dtype]; `found` is of `dtype`, `exact` of float64."""
    assert found is not None, f"{name}: there is none"
    assert eager is not None
    assert exact is not None
    assert exact.dtype == torch.float64
    assert found.dtype == dtype, f"{name}: {found.dtype} instead of {dtype}"
    assert found.shape == exact.shape, f"{name}: {tuple(found.shape)} instead of {tuple(exact.shape)}"
    error, allowed = largest_error(found, exact), 2 * largest_error(eager, exact) + FLOOR[dtype]
    assert error <= allowed, f"{name}: off by {error:.2e}, and {allowed:.2e} is allowed"  # also where error is nan


def largest_error(x: Tensor, exact: Tensor) -> float:
    """max|x - exact|, 0 of nothing, nan if any is."""
    difference = x.detach().double().cpu() - exact.detach().cpu()
    return float(difference.abs().max()) if difference.numel() else 0.0

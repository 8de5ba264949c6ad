"""Residual add + layer norm with all its gradients: by any implementation, and held against float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smallgpt.domain import ops as eager
from tests.kernels.fused.parity import assert_as_good_as_eager

Result = dict[str, Tensor | None]


def numbers(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).requires_grad_()


def add_and_gradients(
    add_layer_norm: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor | None], upstream: tuple[Tensor, Tensor]
) -> Result:
    """Sum, norm and the gradients of residual, delta, weight and bias."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    total, y = add_layer_norm(*leaves, 1e-5)
    torch.autograd.backward([total, y], [up.to(out.dtype) for up, out in zip(upstream, (total, y), strict=True)])
    gradients = [None if x is None else x.grad for x in leaves]
    return dict(zip(("total", "y", "dresidual", "ddelta", "dweight", "dbias"), (total, y, *gradients), strict=True))


def exactly(total: Tensor | None) -> Callable[..., tuple[Tensor, Tensor]]:
    """The formula, of the sum as it was rounded: that is what the norm reads."""

    def add_layer_norm(*inputs: Any) -> tuple[Tensor, Tensor]:
        exact_total = inputs[0] + inputs[1]
        assert total is not None
        exact_total.data.copy_(total)
        return exact_total, eager.layer_norm(exact_total, *inputs[2:])

    return add_layer_norm


def assert_parity(
    found: Result, inputs: list[Tensor | None], upstream: tuple[Tensor, Tensor], yardstick: list[Tensor | None]
) -> None:
    """Every result, and the gradients in their inputs' dtypes, as good as torch's own on the inputs `yardstick`."""
    dtype = dtype_of(found["total"])
    upstream = upstream[0].to(dtype), upstream[1].to(dtype)
    doubles = [None if x is None else x.detach().double() for x in inputs]
    wide_upstream = upstream[0].double(), upstream[1].double()
    expected = add_and_gradients(exactly(found["total"]), doubles, wide_upstream)
    rough = add_and_gradients(eager.add_layer_norm, yardstick, upstream)
    expected["total"] = doubles[0] + doubles[1]  # type: ignore[operator]
    for name, x in zip(("dresidual", "ddelta", "dweight", "dbias"), inputs, strict=True):
        if x is None:
            assert found[name] is None
        else:
            assert_as_good_as_eager(found[name], rounded(rough[name], x.dtype), expected[name], x.dtype, name)
    for name in ("total", "y"):
        assert_as_good_as_eager(found[name], rounded(rough[name], dtype), expected[name], dtype, name)


def rounded(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)


def dtype_of(x: Tensor | None) -> torch.dtype:
    assert x is not None
    return x.dtype


def assert_same(found: Result, expected: Result) -> None:
    for name, x in expected.items():
        y = found[name]
        assert (x is None) == (y is None), name
        assert x is None or y is None or torch.equal(x, y), name

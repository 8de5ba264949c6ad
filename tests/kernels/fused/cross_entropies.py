"""Linear + cross-entropy in both designs, on made-up operands, with its gradients, and held against float64."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt.domain import ops as eager
from smallgpt.domain.ops import LinearCrossEntropy
from smallgpt.kernels.linear_cross_entropy import chunked, flash, fused, reference
from smallgpt.kernels.tiles import forced
from tests.kernels.fused.parity import DTYPES, assert_as_good_as_eager

DESIGNS: dict[str, LinearCrossEntropy] = {
    "chunked": fused.linear_cross_entropy_chunked,
    "flash": fused.linear_cross_entropy_flash,
}
SMALL = {"BLOCK_ROWS": 16, "BLOCK_V": 16, "num_warps": 4, "num_stages": 1}

each_design = pytest.mark.parametrize("op", DESIGNS.values(), ids=DESIGNS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@contextmanager
def small_tiles(forward: dict[str, int] = SMALL, weight_gradient: dict[str, int] = SMALL) -> Iterator[None]:
    """Several programs, blocks, chunks and launches at the sizes of these tests."""
    with ExitStack() as stack:
        stack.enter_context(forced("linear_cross_entropy", "forward", forward))
        stack.enter_context(forced("linear_cross_entropy", "weight_gradient", weight_gradient))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(chunked, "row_tile", lambda *_: (False, {"BLOCK_V": 32, "num_warps": 1, "num_stages": 1}))
        patch.setattr(chunked, "CHUNK_BYTES", 2048)
        patch.setattr(flash, "PARTIAL_BYTES", 0)
        yield


def problem(
    shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype = torch.float32, ignored: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    N, C, V = shape
    x, weight = torch.randn(N, C, device=device), torch.randn(V, C, device=device) / C**0.5
    targets = torch.randint(V, (N,), device=device)
    targets[-1] = V - 1  # the last id, where an off-by-one falls out
    if ignored:
        targets[: N // 3] = -100
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def gradients(loss: Tensor, x: Tensor, weight: Tensor, upstream: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x, weight], upstream.to(loss), retain_graph=True))


def results(
    op: LinearCrossEntropy, x: Tensor, weight: Tensor, targets: Tensor, *options: Any, upstream: Tensor | None = None
) -> list[Tensor]:
    """The loss and its gradients, under a random upstream gradient unless one is given."""
    loss = op(x, weight, targets, *options)
    upstream = torch.randn(loss.shape, device=loss.device) if upstream is None else upstream
    return [loss.detach(), *gradients(loss, x, weight, upstream)]


def assert_parity(op: LinearCrossEntropy, x: Tensor, weight: Tensor, targets: Tensor, *options: Any) -> None:
    torch.manual_seed(1)
    loss = op(x, weight, targets, *options)
    upstream = torch.randn(loss.shape, device=loss.device)
    wide_x, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    exact = results(reference.linear_cross_entropy, wide_x, wide_weight, targets, *options, upstream=upstream)
    rough = results(eager.linear_cross_entropy, x, weight, targets, *options, upstream=upstream)
    for _ in range(2):  # retain_graph: the second time around as the first
        found = [loss, *gradients(loss, x, weight, upstream)]
        for name, a, b, c in zip(("loss", "dx", "dweight"), found, rough, exact, strict=True):
            assert_as_good_as_eager(a, b, c, torch.float32 if name == "loss" else x.dtype, name)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for name, a, b in zip(("loss", "dx", "dweight"), found, expected, strict=True):
        assert torch.equal(a, b), f"{name} differs by {(a - b).abs().max()}"

"""Any shape, dtype, stride and alignment: drawn by hypothesis, where it is installed."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smallgpt.domain.ops import LinearCrossEntropy
from smallgpt.kernels.attention import fused as attention
from smallgpt.kernels.attention import reference
from smallgpt.kernels.layer_norm import fused as layer_norm
from tests.kernels.fused.cross_entropies import DESIGNS, problem
from tests.kernels.fused.cross_entropies import assert_parity as assert_loss_parity
from tests.kernels.fused.layer_norms import add_and_gradients, assert_parity
from tests.kernels.fused.parity import DTYPES, STRIDED, assert_as_good_as_eager
from tests.kernels.memory import Memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
View = Callable[[Tensor], Tensor]

dtypes = st.sampled_from(DTYPES)
views = st.sampled_from([lambda x: x, *STRIDED.values()])
offsets = st.integers(0, 3)  # elements off the alignment
seeds = st.integers(0, 2**32)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    rows=st.tuples(st.integers(0, 4), st.integers(1, 40)),
    width=st.integers(1, 300) | st.sampled_from([384, 768, 1023]),
    of_each=st.tuples(dtypes, dtypes, dtypes),
    with_bias=st.booleans(),
    of_rows=st.tuples(views, views, views, views),
    offset=offsets,
    seed=seeds,
)
def test_layer_norm(
    rows: tuple[int, int],
    width: int,
    of_each: tuple[torch.dtype, torch.dtype, torch.dtype],
    with_bias: bool,
    of_rows: tuple[View, View, View, View],
    offset: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    memory = Memory()
    sizes = [(*rows, width), (*rows, width), (width,), (width,)]
    inputs: list[Tensor | None] = [
        torch.randn(size, device=DEVICE).to(dtype) for size, dtype in zip(sizes, (*of_each, of_each[2]), strict=True)
    ]
    inputs[3] = inputs[3] if with_bias else None
    upstream = torch.randn(*rows, width, device=DEVICE), torch.randn(*rows, width, device=DEVICE)
    placed = [None if x is None else memory.guard(x, offset) for x in inputs]
    placed[:2] = [memory.guard(view(x), offset) for view, x in zip(of_rows, inputs[:2], strict=False) if x is not None]
    ups = memory.guard(of_rows[2](upstream[0]), offset), memory.guard(of_rows[3](upstream[1]), offset)
    found = add_and_gradients(layer_norm.add_layer_norm, placed, ups)
    of_sum = torch.promote_types(of_each[0], of_each[1])
    assert_parity(found, inputs, upstream, [x if x is None or x.dim() > 1 else x.to(of_sum) for x in inputs])
    memory.check()


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 130), st.integers(1, 200)),
    dtype=dtypes,
    design=st.sampled_from(list(DESIGNS.values())),
    of_x=views,
    of_weight=views,
    offset=offsets,
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    z_loss=st.sampled_from([0.0, 0.01]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    seed=seeds,
)
def test_linear_cross_entropy(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    design: LinearCrossEntropy,
    of_x: View,
    of_weight: View,
    offset: int,
    smoothing: float,
    z_loss: float,
    reduction: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    memory = Memory()
    x, weight, targets = problem(shape, DEVICE, dtype)
    x, weight = (
        memory.guard(view(operand.detach()), offset).detach().requires_grad_()
        for view, operand in ((of_x, x), (of_weight, weight))
    )
    assert_loss_parity(design, x, weight, targets, smoothing, -100, z_loss, reduction)
    memory.check()


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(
    B=st.integers(0, 2),
    T=st.integers(1, 40) | st.integers(60, 150),
    H=st.integers(1, 3),
    D=st.integers(1, 64) | st.sampled_from([80, 96, 128]),
    dtype=dtypes,
    of_qkv=views,
    of_upstream=views,
    offset=offsets,
    seed=seeds,
)
def test_causal_attention(
    B: int, T: int, H: int, D: int, dtype: torch.dtype, of_qkv: View, of_upstream: View, offset: int, seed: int
) -> None:
    torch.manual_seed(seed)
    memory = Memory()
    qkv = torch.randn(B, T, 3, H, D, device=DEVICE).to(dtype)
    upstream = torch.randn(B, T, H, D, device=DEVICE).to(dtype)
    results = []
    for causal_attention, leaf, up in (
        (attention.causal_attention, memory.guard(of_qkv(qkv), offset), memory.guard(of_upstream(upstream), offset)),
        (reference.causal_attention, qkv, upstream),
        (reference.causal_attention, qkv.double(), upstream.double()),
    ):
        leaf = leaf.detach().requires_grad_()
        y = causal_attention(leaf, 0.0)
        results.append((y.detach(), *torch.autograd.grad(y, leaf, up)))
    for name, found, rough, exact in zip(("y", "dqkv"), *results, strict=True):
        assert_as_good_as_eager(found, rough, exact, dtype, name)
    memory.check()


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 9),
    H=st.integers(1, 3),
    D=st.integers(1, 64) | st.sampled_from([80, 96, 128]),
    spare=st.integers(0, 40) | st.integers(500, 600),
    dtype=dtypes,
    of_each=st.tuples(views, views, views),
    offset=offsets,
    seed=seeds,
)
def test_cached_attention(
    B: int,
    T: int,
    H: int,
    D: int,
    spare: int,
    dtype: torch.dtype,
    of_each: tuple[View, View, View],
    offset: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    memory = Memory()
    S = T + spare
    q, k, v = (torch.randn(B, n, H, D, device=DEVICE).to(dtype) for n in (T, S, S))
    lengths = torch.randint(T, S + 1, (B,), device=DEVICE)
    rough, exact = (
        reference.cached_attention(q.to(wide), k.to(wide), v.to(wide), lengths) for wide in (dtype, torch.float64)
    )
    for x in (k, v):
        x[torch.arange(S, device=DEVICE) >= lengths[:, None]] = torch.nan
    q, k, v = (memory.guard(view(x), offset) for view, x in zip(of_each, (q, k, v), strict=True))
    found = attention.cached_attention(q, k, v, memory.guard(lengths))
    assert_as_good_as_eager(found, rough, exact, dtype, "y")
    memory.check()

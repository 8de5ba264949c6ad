"""Causal and cached attention: every implementation against a float64 formula, forwards and backwards."""

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import Tensor

from smallgpt.domain import ops as plain
from smallgpt.domain.ops import CachedAttention, CausalAttention
from smallgpt.kernels.attention import native, reference

IMPLEMENTATIONS = {"reference": reference, "native": native, "plain": plain}
CAUSAL: dict[str, CausalAttention] = {name: module.causal_attention for name, module in IMPLEMENTATIONS.items()}
CACHED: dict[str, CachedAttention] = {name: module.cached_attention for name, module in IMPLEMENTATIONS.items()}

SHAPES = [  # (B, T, H, D)
    (1, 1, 1, 16),  # the first token of a text sees itself alone
    (2, 7, 3, 16),  # nothing is a multiple of anything
    (1, 33, 2, 48),  # a head size that is no power of two
    (2, 37, 1, 80),  # the same beyond 64
    (1, 128, 2, 32),  # exactly one block of queries
    (1, 129, 1, 32),  # one query more
    (2, 270, 1, 16),  # two whole blocks and a part
]
TOLERANCE = {torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}  # ‖difference‖ ÷ ‖formula‖

implementation = pytest.mark.parametrize("attend", CAUSAL.values(), ids=CAUSAL)


def formula(qkv: Tensor) -> Tensor:
    """One query at a time: softmax over the keys up to it, nothing masked because nothing later is looked at."""
    q, k, v = qkv.unbind(2)  # (B, T, H, D)
    rows = []
    for t in range(qkv.size(1)):
        scores = torch.einsum("bhd,bshd->bhs", q[:, t], k[:, : t + 1]) / sqrt(qkv.size(-1))
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        rows.append(torch.einsum("bhs,bshd->bhd", weights, v[:, : t + 1]))
    return torch.stack(rows, 1)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert found.isfinite().all()
    difference = (found.double() - expected).norm()
    assert difference <= TOLERANCE[dtype] * expected.norm() + 1e-7


def test_under_autocast_the_reference_rounds_nothing() -> None:
    qkv = torch.randn(2, 20, 3, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = reference.causal_attention(qkv, 0.0)
        cached = reference.cached_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], torch.tensor([20, 20]))
    assert torch.equal(y, reference.causal_attention(qkv, 0.0))
    torch.testing.assert_close(cached, y)


@implementation
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_outputs_and_gradients_are_the_formulas(
    attend: CausalAttention, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    B, T, H, D = shape
    qkv = torch.randn(B, T, 3, H, D).to(dtype).requires_grad_()
    upstream = torch.randn(B, T, H, D).to(dtype)
    exact = qkv.detach().double().requires_grad_()
    expected = formula(exact)
    torch.autograd.backward(expected, upstream.double())
    y = attend(qkv, 0.0)
    torch.autograd.backward(y, upstream)
    assert y.shape == shape
    assert qkv.grad is not None
    assert exact.grad is not None
    assert_near(y.detach(), expected.detach(), dtype)
    if T > 1:
        assert_near(qkv.grad, exact.grad, dtype)
    else:  # one key has weight 1 whatever its score: the gradients of q and k are exactly zero, up to rounding
        assert qkv.grad[:, :, :2].abs().max() < 1e-3
        assert_near(qkv.grad[:, :, 2], exact.grad[:, :, 2], dtype)


@implementation
def test_without_gradients_it_is_the_formula_too(attend: CausalAttention) -> None:
    """Inference takes a path of its own."""
    qkv = torch.randn(2, 37, 3, 2, 16)
    y = attend(qkv, 0.0)
    assert not y.requires_grad
    assert_near(y, formula(qkv.double()), torch.float32)
    with torch.no_grad():
        assert not attend(qkv.requires_grad_(), 0.0).requires_grad


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    # what a plain view of c_attn's output is not, but a slice of a larger projection or another packing is
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.size(-1)],
    "offset": lambda x: torch.cat([x[:, :1], x], 1)[:, 1:],
    "heads before tokens": lambda x: x.permute(0, 3, 2, 1, 4).contiguous().permute(0, 3, 2, 1, 4),
    "thirds in front": lambda x: x.permute(2, 0, 1, 3, 4).contiguous().permute(1, 2, 0, 3, 4),
}


@implementation
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_strides_do_not_matter(attend: CausalAttention, layout: Callable[[Tensor], Tensor]) -> None:
    base = torch.randn(2, 37, 3, 2, 16)
    upstream = torch.randn(2, 16, 2, 37).permute(0, 3, 2, 1)
    results = []
    for view in (lambda x: x, layout):
        leaf = base.clone().requires_grad_()
        y = attend(view(leaf), 0.0)
        torch.autograd.backward(y, upstream if view is layout else upstream.contiguous())
        results.append((y.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@implementation
def test_one_tensor_expanded_over_the_batch_gets_the_sum_of_gradients(attend: CausalAttention) -> None:
    row = torch.randn(1, 9, 3, 2, 16, requires_grad=True)
    torch.autograd.backward(attend(row.expand(3, -1, -1, -1, -1), 0.0).sum())
    once = row.detach().clone().requires_grad_()
    torch.autograd.backward(3 * attend(once, 0.0).sum())
    torch.testing.assert_close(row.grad, once.grad)


@implementation
@pytest.mark.parametrize("grad", [True, False])
def test_a_token_changes_nothing_before_it(attend: CausalAttention, grad: bool) -> None:
    qkv = torch.randn(1, 140, 3, 2, 16, requires_grad=grad)
    before = attend(qkv, 0.0)
    for t in (1, 2, 63, 64, 127, 128, 129, 139):
        changed = qkv.detach().clone()
        changed[:, t] += 1
        after = attend(changed.requires_grad_(grad), 0.0)
        assert torch.equal(after[:, :t], before[:, :t]), f"token {t} reaches back"
        assert not torch.equal(after[:, t], before[:, t])


@implementation
def test_no_gradient_flows_back_from_the_past(attend: CausalAttention) -> None:
    qkv = torch.randn(1, 140, 3, 2, 16, requires_grad=True)
    torch.autograd.backward(attend(qkv, 0.0)[:, :130].square().sum())
    assert qkv.grad is not None
    assert qkv.grad[:, 130:].abs().max() == 0
    assert qkv.grad[:, :130].abs().amin((0, 3, 4))[1:].min() > 0


@implementation
def test_backward_can_be_repeated(attend: CausalAttention) -> None:
    qkv = torch.randn(1, 131, 3, 2, 16, requires_grad=True)
    y = attend(qkv, 0.0)
    first, second = (torch.autograd.grad(y.square().sum(), qkv, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.norm() > 0


@implementation
def test_large_scores_do_not_overflow(attend: CausalAttention) -> None:
    qkv = (1000 * torch.randn(1, 9, 3, 1, 16)).requires_grad_()
    y = attend(qkv, 0.0)
    torch.autograd.backward(y.sum())
    assert y.isfinite().all()
    assert qkv.grad is not None
    assert qkv.grad.isfinite().all()


@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(name: str, dropout: float) -> None:
    """With dropout too: drawn anew from one seed, the mask of the backward pass has to be that of the forward pass."""

    def attend(qkv: Tensor) -> Tensor:
        torch.manual_seed(3)
        return CAUSAL[name](qkv, dropout)

    qkv = torch.randn(2, 6, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attend, (qkv,), fast_mode=True)


@implementation
@pytest.mark.parametrize("grad", [True, False])
def test_dropout_drops_its_share_and_keeps_the_mean(attend: CausalAttention, grad: bool) -> None:
    """With v the unit vectors, the output is the attention weights themselves; a row's share 1/(t+1) each, q being 0."""
    T, p, n = 16, 0.3, 400
    qkv = torch.zeros(n, T, 3, 1, T)
    qkv[:, :, 2, 0] = torch.eye(T)
    kept = attend(qkv.requires_grad_(grad), p).detach()[:, :, 0]  # (n, T, T): weight · keep / (1 - p)
    weights = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    keep = (kept / weights.clamp_min(1e-9)).nan_to_num() * torch.ones(T, T).tril()
    levels = keep[:, torch.ones(T, T).tril() > 0]
    dropped = levels == 0
    torch.testing.assert_close(levels[~dropped], torch.full_like(levels[~dropped], 1 / (1 - p)))
    draws = dropped.numel()
    assert abs(dropped.float().mean() - p) < 5 * sqrt(p * (1 - p) / draws)
    each = dropped.float().mean(0)  # of every (query, key) place: no place is always kept or dropped
    assert (each - p).abs().max() < 5 * sqrt(p * (1 - p) / n)
    assert kept.triu(1).abs().max() == 0


@implementation
def test_dropout_repeats_with_its_seed_and_is_new_without(attend: CausalAttention) -> None:
    qkv = torch.randn(1, 20, 3, 2, 16, requires_grad=True)
    torch.manual_seed(1)
    first, other = attend(qkv, 0.5), attend(qkv, 0.5)
    torch.manual_seed(1)
    assert torch.equal(attend(qkv, 0.5), first)
    assert not torch.equal(other, first)


@pytest.mark.parametrize("attend", CACHED.values(), ids=CACHED)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
# (new queries, slots, valid slots of each row): one token; rows of different ages; several tokens at once; a full prefill
@pytest.mark.parametrize(("T", "S", "lengths"), [(1, 9, [9]), (1, 12, [1, 7, 12]), (4, 11, [4, 11, 6]), (5, 5, [5, 5])])
def test_cached_attention_is_the_causal_one_of_each_rows_newest_queries(
    attend: CachedAttention, dtype: torch.dtype, T: int, S: int, lengths: list[int]
) -> None:
    B, H, D = len(lengths), 2, 16
    qkv = torch.randn(B, S, 3, H, D).to(dtype)
    q = torch.stack([qkv[b, n - T : n, 0] for b, n in enumerate(lengths)])
    k, v = qkv[:, :, 1].clone(), qkv[:, :, 2].clone()
    for b, n in enumerate(lengths):
        k[b, n:], v[b, n:] = 99, -99  # what lies behind the valid slots must not be seen
    y = attend(q, k, v, torch.tensor(lengths))
    assert y.shape == (B, T, H, D)
    for b, n in enumerate(lengths):
        assert_near(y[b], formula(qkv[b : b + 1, :n].double())[0, n - T :], dtype)

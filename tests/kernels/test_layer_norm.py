"""(Residual add +) layer norm: every implementation against its formula in float64."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from smallgpt.domain import ops as plain
from smallgpt.kernels.layer_norm import native, reference

IMPLEMENTATIONS = {"reference": reference, "native": native, "plain": plain}
SHAPES = [  # (..., C)
    (1, 2),  # one row, the smallest width that has a variance
    (3, 3),  # fewer columns than any vector unit has lanes
    (5, 65),  # one past a power of two
    (2, 3, 256),  # the seed's width, with a batch dimension
    (7, 1023),  # one short of a power of two
    (2, 1600),  # GPT-2 XL's width
]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}  # ‖difference‖ ÷ ‖formula‖

implementation = pytest.mark.parametrize("module", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)


def formula(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    mean = x.sum(-1, keepdim=True) / x.size(-1)
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.size(-1)
    y = (x - mean) / (variance + 1e-5) ** 0.5 * weight
    return y if bias is None else y + bias


def assert_near(found: Tensor | None, expected: Tensor | None, dtype: torch.dtype) -> None:
    assert found is not None
    assert expected is not None
    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm() + 1e-6


@implementation
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_outputs_and_every_gradient_are_the_formulas(
    module: ModuleType, shape: tuple[int, ...], with_bias: bool, dtype: torch.dtype
) -> None:
    shapes = [shape, shape, shape[-1:], shape[-1:]][: 4 if with_bias else 3]
    inputs = [torch.randn(s).to(dtype).requires_grad_() for s in shapes]
    up_total, up_y = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    residual, delta, weight, bias = inputs if with_bias else [*inputs, None]
    total, y = module.add_layer_norm(residual, delta, weight, bias, 1e-5)
    torch.autograd.backward([total, y], [up_total, up_y])

    exact = [x.detach().double().requires_grad_() for x in inputs]
    # the norm reads the sum as it is handed on, rounded to dtype
    exact_total = exact[0] + exact[1]
    exact_total.data.copy_(total.detach().double())
    exact_y = formula(exact_total, exact[2], exact[3] if with_bias else None)
    torch.autograd.backward([exact_total, exact_y], [up_total.double(), up_y.double()])

    assert_near(total.detach(), (inputs[0].double() + inputs[1].double()).detach(), dtype)
    assert_near(y.detach(), exact_y.detach(), dtype)
    alone = module.layer_norm(total.detach(), weight, bias, 1e-5)
    assert_near(alone.detach(), exact_y.detach(), dtype)
    for x, e in zip(inputs, exact, strict=True):
        assert_near(x.grad, e.grad, dtype)


@implementation
def test_each_output_alone_gives_its_own_gradient(module: ModuleType) -> None:
    residual, delta = (torch.randn(4, 33, requires_grad=True) for _ in range(2))
    weight, bias = torch.randn(33), torch.randn(33)
    total, y = module.add_layer_norm(residual, delta, weight, bias, 1e-5)
    upstream = torch.randn(4, 33)
    by_total = torch.autograd.grad(total, [residual, delta], upstream, retain_graph=True)
    assert all(torch.equal(g, upstream) for g in by_total)
    by_y = torch.autograd.grad(y, [residual, delta], upstream)
    exact = (residual + delta).detach().double().requires_grad_()
    torch.autograd.backward(formula(exact, weight.double(), bias.double()), upstream.double())
    for gradient in by_y:
        assert_near(gradient, exact.grad, torch.float32)


@implementation
def test_a_large_mean_does_not_drown_the_variance(module: ModuleType) -> None:
    """E[x²] - E[x]² would lose every digit here."""
    x = 3000 + torch.randn(4, 256)
    y = module.layer_norm(x, torch.ones(256), None, 1e-5)
    torch.testing.assert_close(y.double(), formula(x.double(), torch.ones(256), None), rtol=1e-3, atol=2e-3)


@implementation
def test_a_constant_row_gives_the_bias_and_finite_gradients(module: ModuleType) -> None:
    x, bias = torch.full((2, 64), 7.0, requires_grad=True), torch.randn(64)
    y = module.layer_norm(x, torch.ones(64), bias, 1e-5)
    torch.autograd.backward(y, torch.randn(2, 64))
    torch.testing.assert_close(y.detach(), bias.expand(2, 64))
    assert x.grad is not None
    assert x.grad.isfinite().all()


@implementation
def test_strides_do_not_matter(module: ModuleType) -> None:
    x, upstream = torch.randn(6, 40), torch.randn(40, 6).T
    weight = torch.randn(40, 2)[:, 0]
    results = []
    for strided in (False, True):
        leaf = x.clone().requires_grad_()
        view = torch.cat([leaf, leaf], 1)[:, :40] if strided else leaf
        y = module.add_layer_norm(view, view, weight if strided else weight.contiguous(), None, 1e-5)[1]
        torch.autograd.backward(y, upstream if strided else upstream.contiguous())
        results.append((y.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@implementation
def test_backward_can_be_repeated_and_inputs_stay_as_they_are(module: ModuleType) -> None:
    residual, delta = (torch.randn(4, 33, requires_grad=True) for _ in range(2))
    before = residual.detach().clone(), delta.detach().clone()
    y = module.add_layer_norm(residual, delta, torch.ones(33), None, 1e-5)[1]
    first, second = (torch.autograd.grad(y.pow(3).sum(), residual, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.norm() > 0
    assert torch.equal(residual, before[0])
    assert torch.equal(delta, before[1])


@implementation
def test_nothing_is_recorded_when_nothing_is_learned(module: ModuleType) -> None:
    total, y = module.add_layer_norm(torch.randn(2, 8), torch.randn(2, 8), torch.ones(8), None, 1e-5)
    assert not total.requires_grad
    assert not y.requires_grad


@implementation
def test_a_row_is_normalised_alike_alone_and_among_others(module: ModuleType) -> None:
    x, weight = torch.randn(9, 130), torch.randn(130)
    together = module.layer_norm(x, weight, None, 1e-5)
    assert all(torch.equal(module.layer_norm(x[i : i + 1], weight, None, 1e-5)[0], together[i]) for i in range(9))


def test_the_references_gradients_are_those_of_finite_differences() -> None:
    sizes = [(3, 7), (3, 7), (7,), (7,)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in sizes]
    assert torch.autograd.gradcheck(lambda r, d, w, b: reference.add_layer_norm(r, d, w, b, 1e-5), inputs)

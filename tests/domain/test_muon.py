"""Muon against its formula in float64, and as a citizen of a captured step."""

import pytest
import torch
from torch import Tensor, nn

from smallgpt.domain.muon import QUINTICS, Muon, orthogonalise

SHAPES = [(6, 6), (6, 6), (12, 4), (4, 12)]


def parameters(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def formula(matrix: Tensor) -> Tensor:
    """The quintics applied to the singular values, in float64."""
    X = matrix.double()
    U, S, Vh = torch.linalg.svd(X / (1.01 * X.norm() + 1e-7), full_matrices=False)
    for a, b, c in QUINTICS:
        S = a * S + b * S**3 + c * S**5
    result: Tensor = U @ torch.diag(S) @ Vh
    return result


def test_the_quintics_bring_singular_values_to_one_order_of_magnitude() -> None:
    S = torch.logspace(-2, 0, 10_000, dtype=torch.float64)
    for a, b, c in QUINTICS:
        S = a * S + b * S**3 + c * S**5
    assert S.min() > 0.18
    assert S.max() < 1.87


def test_three_steps_are_the_formula() -> None:
    params = parameters(0)
    muon = Muon(params, 0.1, momentum=0.9, weight_decay=0.2)
    expected = [p.detach().double() for p in params]
    buffers = [torch.zeros_like(p) for p in expected]
    for step in range(3):
        give_gradients(params, step)
        for i, p in enumerate(params):
            assert p.grad is not None
            g = p.grad.double()
            buffers[i] = 0.9 * buffers[i] + 0.1 * g
            update = formula(0.1 * g + 0.9 * buffers[i])
            larger = max(1.0, p.size(0) / p.size(1)) ** 0.5
            expected[i] = expected[i] * (1 - 0.1 * 0.2) - 0.1 * larger * update
        muon.step()
    for p, wanted in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_batches_of_matrices_become_orthogonal_in_each_precision(dtype: torch.dtype, allowed: float) -> None:
    matrices = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(matrices, dtype)
    assert found.dtype == dtype
    for one, matrix in zip(found, matrices, strict=True):
        assert (one.double() - formula(matrix)).abs().max() < allowed
        singular = torch.linalg.svdvals(one.float())
        assert singular.min() > 0.18
        assert singular.max() < 1.87 + allowed * 3


def test_a_rate_that_is_a_tensor_is_the_same_rate() -> None:
    plain, captured = parameters(1), parameters(1)
    rate = torch.tensor(0.0)
    optimizers = Muon(plain, 0.0), Muon(captured, rate)
    for step, lr in enumerate((0.1, 0.02)):
        optimizers[0].param_groups[0]["lr"] = lr
        rate.fill_(lr)
        for params, optimizer in zip((plain, captured), optimizers, strict=True):
            give_gradients(params, step)
            optimizer.step()
    for one, other in zip(plain, captured, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("worst", [torch.nan, torch.inf])
def test_found_inf_leaves_everything_as_it_is(worst: float) -> None:
    params = parameters(2)
    muon = Muon(params, 0.1)
    give_gradients(params, 0)
    muon.step()
    before = [(p.detach().clone(), muon.state[p]["momentum_buffer"].clone()) for p in params]
    give_gradients(params, 1)
    assert params[0].grad is not None
    params[0].grad[0, 0] = worst
    muon.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    muon.step()
    for p, (weight, momentum) in zip(params, before, strict=True):
        assert torch.equal(p, weight)
        assert torch.equal(muon.state[p]["momentum_buffer"], momentum)
    give_gradients(params, 1)
    muon.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    muon.step()
    assert not any(torch.equal(p, weight) for p, (weight, _) in zip(params, before, strict=True))

"""Dropout by 64-bit draws: its share, its mean, its gradient, its seeds."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.domain.dropout import draw_kept, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_elements_are_dropped_with_their_probability_and_the_mean_stays(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 997, dtype=dtype)
    y = dropout(x, p, training=True)
    assert y.dtype == dtype
    sigma = (p * (1 - p) / x.numel()) ** 0.5
    assert abs((y == 0).double().mean().item() - p) < 5 * sigma
    kept = y[y != 0].double()
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=torch.finfo(dtype).eps, atol=0)


def test_draws_are_independent_between_the_four_of_a_number_and_between_neighbours() -> None:
    torch.manual_seed(0)
    kept = -draw_kept(torch.empty(1_000_000), 0.3).double()
    kept = (kept - kept.mean()) / kept.std()
    for distance in (1, 2, 3, 4, 5, 8, 1000):
        correlation = (kept[:-distance] * kept[distance:]).mean().item()
        assert abs(correlation) < 5e-3, f"5 sigma at distance {distance}"


def test_the_gradient_has_the_mask_of_the_output() -> None:
    torch.manual_seed(1)
    x = torch.randn(33, 65, requires_grad=True)
    y = dropout(x, 0.4, training=True)
    upstream = torch.randn(33, 65)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(gradient, torch.where(y == 0, 0.0, upstream / 0.6))


def test_the_gradient_can_be_differentiated() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)

    def dropped(x: Tensor) -> Tensor:
        torch.manual_seed(4)
        return dropout(x, 0.4, training=True)

    torch.autograd.gradgradcheck(dropped, x)
    torch.autograd.gradgradcheck(lambda x: dropped(x).sin(), x)


def test_strides_and_what_is_not_finite() -> None:
    x = torch.full((8, 16), torch.nan).T
    torch.manual_seed(2)
    y = dropout(x, 0.5, training=True)
    assert y.shape == (16, 8)
    assert 0 < y.isnan().sum() < y.numel(), "a dropped nan is 0, a kept one is nan"


def test_a_seed_decides_and_evaluation_draws_nothing() -> None:
    x = torch.randn(50)
    torch.manual_seed(3)
    first = dropout(x, 0.5, training=True)
    assert not torch.equal(dropout(x, 0.5, training=True), first)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5, training=True), first)
    state = torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x or torch.equal(dropout(x, 0.5, training=False), x)
    assert torch.equal(dropout(x, 0.0, training=True), F.dropout(x, 0.0))
    assert torch.equal(torch.get_rng_state(), state)

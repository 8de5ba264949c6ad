"""Backward passes without a derivative of their own: they work once, and say so when they are asked for more."""

from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt.domain.gradients import first_derivative_only


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @first_derivative_only("cube")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor]:
        (x,) = ctx.saved_tensors
        return (3 * x**2 * dy,)


@pytest.mark.parametrize("weighted", [False, True], ids=["a loss", "what comes from above has a gradient"])
def test_a_gradient_to_be_differentiated_is_refused(weighted: bool) -> None:
    x = torch.tensor([2.0], requires_grad=True)
    loss = (Cube.apply(x) * (x if weighted else 1)).sum()  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match=r"^cube: .*no second derivative \(create_graph=True\); use the formulas"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_gradients_are_made_as_often_as_one_likes() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    loss = Cube.apply(x).sum()  # type: ignore[no-untyped-call]
    for _ in range(2):
        assert torch.autograd.grad(loss, x, retain_graph=True)[0].item() == 12

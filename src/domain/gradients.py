"""Backward passes that are written by hand have no derivative of their own: asking for one is an error with a remedy."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


def first_derivative_only(operation: str) -> Callable[[Backward], Backward]:
    """For the backward of an autograd.Function. `operation` is the flag's word: "layer-norm".

    torch's once_differentiable refuses only where what comes from above has a gradient of its own. The slope of a loss has
    none: its gradient passes as a constant, and a penalty on it is dropped without a word. Here a gradient that is to be
    differentiated, made under create_graph, raises RuntimeError.
    """
    message = (
        f"{operation}: its backward pass is written by hand and has no second derivative (create_graph=True); "
        'use the formulas: smallgpt.load(RUN, kernels="reference"), or GPT(config, select("reference").ops)'
    )

    def decorate(backward: Backward) -> Backward:
        @wraps(backward)
        def once(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # compiled graphs refuse it themselves
                raise RuntimeError(message)
            return backward(ctx, *upstream)

        return once

    return decorate

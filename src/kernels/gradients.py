"""Backward passes that are written by hand have no derivative of their own: asking for one is an error with a remedy."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


def first_derivative_only(operation: str) -> Callable[[Backward], Backward]:
    """For the backward of an autograd.Function. `operation` is the flag's word: "layer-norm".

    torch's once_differentiable lets a gradient of a linear loss pass as a constant: a penalty on it would then be dropped
    without a word. Here every gradient made under create_graph raises RuntimeError when it is differentiated.
    """
    message = f"{operation}: its Triton kernel has no second derivative; use --kernels.{operation} reference"

    def decorate(backward: Backward) -> Backward:
        @wraps(backward)
        def once(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
            with torch.no_grad():
                gradients = backward(ctx, *upstream)
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # compiled graphs refuse it themselves
                return gradients
            # hung between the gradients and what they depend on
            sources = [t for t in (*upstream, *ctx.saved_tensors) if t is not None and t.requires_grad]
            refuse: Any = torch._C._functions.DelayedError(message.encode(), len(gradients) + len(sources))
            refused: tuple[Tensor | None, ...] = refuse(
                *(None if g is None else g.detach() for g in gradients), *sources
            )
            return refused[: len(gradients)]

        return once

    return decorate

"""One weight, read as the embedding and as the output head, whose two gradients meet in one buffer.

Left to itself, autograd fills a second (V, C) buffer with the embedding's gradient, mostly zeros, and adds it to the head's.
Here the gradient of the rows that were looked up is added to the head's where they belong.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def embed_and_head(weight: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    """weight (V, C), idx (B, T) int64 -> (its rows (B, T, C), the weight for the head (V, C))."""
    if torch.compiler.is_compiling() or not (weight.requires_grad and torch.is_grad_enabled()):
        return F.embedding(idx, weight), weight
    tied: tuple[Tensor, Tensor] = _Tied.apply(weight, idx)  # type: ignore[no-untyped-call]
    return tied


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(idx)
        ctx.n_ids = weight.size(0)
        return F.embedding(idx, weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, of_rows: Tensor | None, of_head: Tensor | None) -> tuple[Tensor | None, None]:
        if of_rows is None:
            return of_head, None
        if of_head is None:
            of_head = of_rows.new_zeros(ctx.n_ids, of_rows.size(-1))
        # in place: the head's gradient was made for this one reader, unless it is to be differentiated again.
        # index_add would add in any order on a GPU
        add = of_head.index_put if torch.is_grad_enabled() else of_head.index_put_
        return add(ctx.saved_tensors, of_rows.to(of_head.dtype), accumulate=True), None

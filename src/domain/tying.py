"""One weight, read as the embedding and as the output head, whose two gradients meet in one buffer.

Left to itself, autograd fills a second (V, C) buffer with the embedding's gradient, mostly zeros, and adds it to the head's.
Here the embedding's comes as the rows that were looked up, and they are added to the head's where they belong.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def embed_and_head(weight: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    """weight (V, C), idx (B, T) int64 -> (its rows (B, T, C), the weight for the head (V, C))."""
    if torch.compiler.is_compiling() or not (weight.requires_grad and torch.is_grad_enabled()):
        return F.embedding(idx, weight), weight
    for_lookup, for_head = _Tied.apply(weight)  # type: ignore[no-untyped-call]
    return F.embedding(idx, for_lookup, sparse=True), for_head


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_lookup: Tensor | None, of_head: Tensor | None) -> Tensor | None:
        if of_lookup is None:
            return of_head
        if of_head is None:
            return of_lookup.to_dense()
        # in place: the head's gradient was made for this one reader. index_add_ would add in any order on a GPU
        return of_head.index_put_((of_lookup._indices()[0],), of_lookup._values().to(of_head.dtype), accumulate=True)

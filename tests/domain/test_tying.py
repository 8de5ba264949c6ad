"""One weight read twice: the same gradient as autograd's own sum, in one buffer."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.domain.tying import embed_and_head

V, C = 50, 6


def plain(weight: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    return F.embedding(idx, weight), weight


def gradient(tie: object, weight: Tensor, idx: Tensor, parts: str) -> Tensor:
    rows, head = tie(weight, idx)  # type: ignore[operator]
    loss = torch.zeros(())
    if "lookup" in parts:
        loss = loss + rows.sin().sum()
    if "head" in parts:
        loss = loss + (torch.linspace(-1, 1, C) @ head.T).square().sum()
    (found,) = torch.autograd.grad(loss, weight)
    return found


@pytest.mark.parametrize("parts", ["lookup and head", "lookup", "head"])
def test_the_gradient_is_the_sum_of_both(parts: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(V, C, generator=generator, requires_grad=True)
    idx = torch.randint(V, (4, 30), generator=generator)  # with repetitions
    found = gradient(embed_and_head, weight, idx, parts)
    assert not found.is_sparse
    torch.testing.assert_close(found, gradient(plain, weight, idx, parts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", ["lookup and head", "lookup", "head"])
def test_the_gradient_can_be_differentiated(parts: str) -> None:
    weight = torch.randn(7, C, dtype=torch.float64, requires_grad=True)
    idx = torch.tensor([[1, 3, 1], [6, 1, 0]])

    def both(weight: Tensor) -> Tensor:
        rows, head = embed_and_head(weight, idx)
        wanted = [rows.sin().sum()] * ("lookup" in parts) + [head.square().sin().sum()] * ("head" in parts)
        return sum(wanted, torch.zeros((), dtype=torch.float64))

    torch.autograd.gradgradcheck(both, weight)


def test_no_second_buffer_of_the_weights_size_is_made() -> None:
    weight = torch.randn(V, C, requires_grad=True)
    idx = torch.randint(V, (2, 3))
    rows, head = embed_and_head(weight, idx)
    of_head = torch.zeros(V, C)
    torch.autograd.backward([rows, head], [torch.ones_like(rows), of_head])
    counts = torch.bincount(idx.flatten(), minlength=V).float()
    torch.testing.assert_close(
        of_head, counts[:, None].expand(V, C), msg="the head's own gradient took up the lookup's"
    )


def test_without_gradients_it_is_the_weight_itself() -> None:
    weight = torch.randn(V, C, requires_grad=True)
    with torch.no_grad():
        rows, head = embed_and_head(weight, torch.tensor([[3]]))
    assert head is weight
    assert torch.equal(rows[0, 0], weight[3])

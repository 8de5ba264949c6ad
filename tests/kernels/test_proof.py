"""What the proof accepts, and the faults that it must notice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.domain.ops import TORCH_OPS, Ops
from smallgpt.kernels import proof
from smallgpt.kernels.select import BACKENDS, OPERATIONS

CPU, REFERENCE = torch.device("cpu"), BACKENDS["reference"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check(operation: str, dtype: torch.dtype = torch.float32, **faults: Any) -> proof.Check:
    return proof.check(operation, TORCH_OPS._replace(**faults), REFERENCE, CPU, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_plain_torch_is_right(operation: str, dtype: torch.dtype) -> None:
    result = check(operation, dtype)
    assert result.passed, result.words


def wrong_in(operation: str) -> Ops:
    faults: dict[str, Any] = {
        "cached_attention": lambda q, k, v, n: TORCH_OPS.cached_attention(q, k, v, torch.full_like(n, k.size(1))),
        "layer_norm": lambda x, w, b, eps: TORCH_OPS.layer_norm(x, w, None, eps),
        "add_layer_norm": lambda r, d, w, b, eps: (r, TORCH_OPS.layer_norm(r + d, w, b, eps)),
        "linear_cross_entropy": lambda x, w, t, s, i, z, r: TORCH_OPS.linear_cross_entropy(x, w, t, 0.0, i, z, r),
    }
    return TORCH_OPS._replace(**{operation: faults[operation]})


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        ("attention", "cached_attention"),
        ("layer_norm", "layer_norm"),
        ("layer_norm", "add_layer_norm"),
        ("linear_cross_entropy", "linear_cross_entropy"),
    ],
)
def test_the_proof_looks_at_every_part_of_an_operation(operation: str, part: str) -> None:
    bad = proof.check(operation, wrong_in(part), REFERENCE, CPU, torch.float32)
    assert not bad.passed, bad.words


class GarbageBackwards(torch.autograd.Function):
    """Layer norm whose gradients are numbers of no meaning."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(weight, bias)
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias = ctx.saved_tensors
        return torch.full_like(dy, 42), torch.ones_like(weight), torch.ones_like(bias), None


def garbage_backwards(*operands: Any) -> Tensor:
    y: Tensor = GarbageBackwards.apply(*operands)  # type: ignore[no-untyped-call]
    return y


class KeptGradients(torch.autograd.Function):
    """The loss with gradients from its forward pass: scaled by what comes from above, or as they are kept."""

    @staticmethod
    def forward(ctx: Any, scales: Callable[[Tensor], bool], x: Tensor, weight: Tensor, *options: Any) -> Tensor:
        leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
        with torch.enable_grad():
            loss = TORCH_OPS.linear_cross_entropy(leaves[0], leaves[1], *options)
            ctx.kept = torch.autograd.grad(loss.sum(), leaves)
        ctx.scales, ctx.count = scales, len(options)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw = (g * upstream for g in ctx.kept) if ctx.scales(upstream) else ctx.kept
        return None, dx, dw, *[None] * ctx.count


def kept(scales: Callable[[Tensor], bool]) -> Callable[..., Tensor]:
    def lose(x: Tensor, weight: Tensor, targets: Tensor, s: float, i: int, z: float, reduction: str) -> Tensor:
        if reduction == "none":
            return TORCH_OPS.linear_cross_entropy(x, weight, targets, s, i, z, "none")
        loss: Tensor = KeptGradients.apply(scales, x, weight, targets, s, i, z, reduction)  # type: ignore[no-untyped-call]
        return loss

    return lose


def always_the_mean(x: Tensor, weight: Tensor, targets: Tensor, *options: Any) -> Tensor:
    return TORCH_OPS.linear_cross_entropy(x, weight, targets, *options[:3])


def in_autocasts_dtype(x: Tensor, weight: Tensor, targets: Tensor, *options: Any) -> Tensor:
    loss = TORCH_OPS.linear_cross_entropy(x, weight, targets, *options)
    return loss.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else loss


def drops_without_scaling(qkv: Tensor, dropout: float) -> Tensor:
    return TORCH_OPS.causal_attention(qkv, dropout) * (1 - dropout)


def drops_more(qkv: Tensor, dropout: float) -> Tensor:
    return TORCH_OPS.causal_attention(qkv, dropout + 0.1 if dropout else 0.0)


class OtherMaskBackwards(torch.autograd.Function):
    """Attention whose backward pass drops other weights than its forward pass: for all gradients, or for those of q and k."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, dropout: float, parts: int) -> Tensor:
        ctx.save_for_backward(qkv, torch.get_rng_state())
        ctx.dropout, ctx.parts = dropout, parts
        return TORCH_OPS.causal_attention(qkv, dropout)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        qkv, state = ctx.saved_tensors
        with torch.random.fork_rng([]):
            torch.set_rng_state(state)
            of_the_same, of_another = (gradient(qkv, ctx.dropout, upstream) for _ in range(2))
        of_the_same[:, :, : ctx.parts] = of_another[:, :, : ctx.parts]
        return of_the_same, None, None


def gradient(qkv: Tensor, dropout: float, upstream: Tensor) -> Tensor:
    leaf = qkv.detach().requires_grad_()
    with torch.enable_grad():
        y = TORCH_OPS.causal_attention(leaf, dropout)
    return torch.autograd.grad(y, leaf, upstream)[0]


def other_mask(parts: int) -> Callable[[Tensor, float], Tensor]:
    return lambda qkv, dropout: OtherMaskBackwards.apply(qkv, dropout, parts)  # type: ignore[no-untyped-call]


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "garbage as gradients": ("layer_norm", {"layer_norm": garbage_backwards}),
    "what comes from above is ignored": ("linear_cross_entropy", {"linear_cross_entropy": kept(lambda _: False)}),
    "always the mean": ("linear_cross_entropy", {"linear_cross_entropy": always_the_mean}),
    "a kept gradient for a slope of 1": (
        "linear_cross_entropy",
        {"linear_cross_entropy": kept(lambda upstream: bool(upstream != 1))},
    ),
    "no dropout": ("attention", {"causal_attention": lambda qkv, _: TORCH_OPS.causal_attention(qkv, 0.0)}),
    "not scaled": ("attention", {"causal_attention": drops_without_scaling}),
    "too much dropout": ("attention", {"causal_attention": drops_more}),
    "another mask backwards": ("attention", {"causal_attention": other_mask(3)}),
    "another mask for q and k": ("attention", {"causal_attention": other_mask(2)}),
}


@pytest.mark.parametrize(("operation", "faults"), WRONG.values(), ids=WRONG)
def test_a_wrong_implementation_is_refused(operation: str, faults: dict[str, Any]) -> None:
    result = check(operation, **faults)
    assert not result.passed, result.words


def test_attention_with_the_right_mask_everywhere_is_right() -> None:
    result = check("attention", causal_attention=other_mask(0))
    assert result.passed, result.words


def test_kept_gradients_that_are_scaled_are_right() -> None:
    result = check("linear_cross_entropy", linear_cross_entropy=kept(lambda _: True))
    assert result.passed, result.words


def test_under_autocast_the_loss_must_come_in_fp32() -> None:
    assert check("linear_cross_entropy", linear_cross_entropy=in_autocasts_dtype).passed
    result = check("linear_cross_entropy", torch.float16, linear_cross_entropy=in_autocasts_dtype)
    assert not result.passed
    assert "the loss is torch.float16; it must be fp32" in result.words


def test_a_nan_anywhere_is_an_error() -> None:
    def normalise(*operands: Any) -> Tensor:
        return TORCH_OPS.layer_norm(*operands) * torch.nan

    assert not check("layer_norm", layer_norm=normalise).passed


@pytest.mark.parametrize(("found", "expected", "error"), [(0.0, 0.0, 0.0), (1e-3, 0.0, 1e-3), (1.0, 2.0, 0.5)])
def test_a_distance_from_nothing_is_the_size_of_what_was_found(found: float, expected: float, error: float) -> None:
    assert proof.distance(torch.tensor([found]), torch.tensor([expected]).double()) == pytest.approx(error)

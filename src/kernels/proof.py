"""Is an implementation right on this device? Launch it on a small odd shape and compare with the formula in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from smallgpt.domain.errors import HardwareError
from smallgpt.domain.ops import Ops

# Largest ‖difference‖/‖reference‖ of an output or gradient: a few times the dtype's rounding (2⁻²⁴, 2⁻¹¹, 2⁻⁸).
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Check:
    """The outcome of launching one operation."""

    passed: bool
    words: str
    """What happened, for people: the error met, or the failure."""
    error: float | None
    """The largest relative error met; None where nothing ran."""
    available: bool = True
    """False where it says itself that this device or dtype is not for it."""


def check(
    operation: str, ops: Ops, oracle: Ops, device: torch.device, dtype: torch.dtype, head_size: int = 32
) -> Check:
    """Run forward and backward of `operation` ("attention", "layer_norm", "linear_cross_entropy") and of its oracle.

    Draws nothing from torch's generators. `head_size` is attention's.
    """
    run = _CASES[operation]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            results = run(ops, generator, device, dtype, head_size)
        except HardwareError as error:
            why = first_line(error).removeprefix(f"{operation}: ")
            return Check(False, f"does not run on {device}: {why}", None, available=False)
        except Exception as error:  # Triton's, torch's and the driver's have no common base
            return Check(False, f"failed to launch on {device}: {first_line(error)}", None)
        expected = run(oracle, generator.manual_seed(0), torch.device("cpu"), torch.float64, head_size)
    worst = max(distance(a, b) for a, b in zip(results, expected, strict=True))
    verdict = f"launched on {device}; largest error {worst:.0e} of {TOLERANCE[dtype]:.0e} allowed"
    return Check(worst <= TOLERANCE[dtype], verdict, worst)  # nan compares false: not passed


def first_line(error: Exception) -> str:
    """What an error says first, or its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def distance(result: Tensor, expected: Tensor) -> float:
    """‖result - expected‖ ÷ ‖expected‖, the latter in float64 on the CPU."""
    expected = expected.detach()
    difference = result.detach().cpu().double() - expected
    return float(difference.norm() / expected.norm())


Case = Callable[[Ops, torch.Generator, torch.device, torch.dtype, int], list[Tensor]]


def _inputs(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype, *shapes: tuple[int, ...]
) -> list[Tensor]:
    """Normal tensors, rounded to dtype's grid on both sides so that the oracle sees the same numbers."""
    grid = torch.bfloat16  # the coarsest of the dtypes checked
    return [torch.randn(s, generator=generator).to(grid).to(device, dtype).requires_grad_() for s in shapes]


def _attention(ops: Ops, g: torch.Generator, device: torch.device, dtype: torch.dtype, head_size: int) -> list[Tensor]:
    results = []
    for tokens in (37, 150):  # within one tile, and beyond
        qkv, upstream = _inputs(g, device, dtype, (2, tokens, 3, 2, head_size), (2, tokens, 2, head_size))
        y = ops.causal_attention(qkv, 0.0)
        torch.autograd.backward(y, upstream)
        results += [y, _gradient(qkv), _dropout_agreement(ops, qkv.detach().requires_grad_())]
    return results + _cached_attention(ops, g, device, dtype, head_size)


def _cached_attention(
    ops: Ops, g: torch.Generator, device: torch.device, dtype: torch.dtype, head_size: int
) -> list[Tensor]:
    """One new query and several, rows of one length and of three, in a cache that is read whole and in one that is split."""
    results = []
    for slots in (37, 600):
        q, k, v = (x.detach() for x in _inputs(g, device, dtype, (3, 5, 2, head_size), *[(3, slots, 2, head_size)] * 2))
        lengths = torch.tensor([slots, 5, slots // 2], device=device)
        results += [ops.cached_attention(q[:, :new], k, v, lengths) for new in (1, 5)]
        results.append(ops.cached_attention(q[:, :1], k, v, None))
    return results


def _dropout_agreement(ops: Ops, qkv: Tensor) -> Tensor:
    """1 if both directions drop the same weights, whichever they are: given the mask y is linear in v, so <y, y> = <v, dv>."""
    y = ops.causal_attention(qkv, 0.3)
    torch.autograd.backward(y, y.detach())
    v, dv = qkv.detach()[:, :, 2].double(), _gradient(qkv)[:, :, 2].double()
    return (v * dv).sum() / y.detach().double().square().sum()


def _layer_norm(ops: Ops, g: torch.Generator, device: torch.device, dtype: torch.dtype, _: int) -> list[Tensor]:
    residual, delta, up1, up2, weight, bias = _inputs(g, device, dtype, *[(5, 65)] * 4, (65,), (65,))
    total, y = ops.add_layer_norm(residual, delta, weight, bias, 1e-5)
    torch.autograd.backward([total, y], [up1, up2])
    alone = ops.layer_norm(residual, weight, bias, 1e-5)
    return [total, y, alone, _gradient(residual), _gradient(delta), _gradient(weight), _gradient(bias)]


def _linear_cross_entropy(
    ops: Ops, g: torch.Generator, device: torch.device, dtype: torch.dtype, _: int
) -> list[Tensor]:
    results = []
    for rows, ids in ((33, 101), (5, 16411)):  # where the logits are no burden, and where our kernels never make them
        x, weight = _inputs(g, device, dtype, (rows, 32), (ids, 32))
        targets = torch.randint(ids, (rows,), generator=g).to(device)
        targets[3] = -100
        loss = ops.linear_cross_entropy(x, weight, targets, 0.1, -100, 0.01)
        torch.autograd.backward(loss)
        results += [loss, _gradient(x), _gradient(weight)]
    return results


def _gradient(x: Tensor) -> Tensor:
    if x.grad is None:
        raise RuntimeError("no gradient arrived")
    return x.grad


_CASES: dict[str, Case] = {
    "attention": _attention,
    "layer_norm": _layer_norm,
    "linear_cross_entropy": _linear_cross_entropy,
}

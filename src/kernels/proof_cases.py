"""What proof.py launches: each operation on small odd shapes, forwards and backwards, beside the formula in float64.

Every backward pass runs twice over the same graph: what an implementation keeps from its forward pass must outlive the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from smallgpt.domain.ops import CausalAttention, LinearCrossEntropy, Ops, Reduction

DROPOUT = 0.25  # the same probability to those that round it to 1/256
Pairs = list[tuple[Tensor, Tensor]]
"""Found, and expected in float64 on the CPU."""
Run = Callable[[Ops, list[Tensor]], list[Tensor]]
"""Operations and their operands -> outputs and gradients."""


@dataclass(frozen=True)
class Trial:
    """Two implementations that are given the same numbers."""

    ops: Ops
    oracle: Ops
    device: torch.device
    """Of `ops`, as is the dtype; the oracle computes in float64 on the CPU."""
    dtype: torch.dtype
    head_size: int
    generator: torch.Generator

    def numbers(self, *shapes: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """Normal leaves for either side, rounded to the coarsest of the dtypes checked so that both see the same."""
        rounded = [torch.randn(shape, generator=self.generator).bfloat16() for shape in shapes]
        return (
            [x.to(self.device, self.dtype).requires_grad_() for x in rounded],
            [x.double().requires_grad_() for x in rounded],
        )

    def compare(self, run: Run, *shapes: tuple[int, ...]) -> Pairs:
        """What either side makes of the same numbers of these shapes."""
        ours, exact = self.numbers(*shapes)
        return list(zip(run(self.ops, ours), run(self.oracle, exact), strict=True))

    def under_autocast(self) -> "Trial":
        """The loss from operands in fp32, as training with mixed precision gives it."""
        lose = _under_autocast(self.ops.linear_cross_entropy, self.device, self.dtype)
        return replace(self, ops=self.ops._replace(linear_cross_entropy=lose), dtype=torch.float32)


def _attention(trial: Trial) -> Pairs:
    D = trial.head_size
    pairs: Pairs = []
    for tokens in (37, 150):  # within one tile, and beyond
        shapes = (2, tokens, 3, 2, D), (2, tokens, 2, D)
        pairs += trial.compare(_causal_attention, *shapes) + _dropout(trial, tokens)
    for slots in (37, 600):  # a cache that is read whole, and one that is split
        pairs += trial.compare(_cached_attention, (3, 5, 2, D), *[(3, slots, 2, D)] * 2)
    return pairs


def _causal_attention(ops: Ops, numbers: list[Tensor]) -> list[Tensor]:
    qkv, upstream = numbers
    y = ops.causal_attention(qkv, 0.0)
    return [y, *_gradients([y], [qkv], [upstream])]


def _cached_attention(ops: Ops, numbers: list[Tensor]) -> list[Tensor]:
    """One new query and several, rows of one length and of three."""
    q, k, v = (x.detach() for x in numbers)
    slots = k.size(1)
    lengths = torch.tensor([slots, 5, slots // 2], device=q.device)
    results = [ops.cached_attention(q[:, :new], k, v, lengths) for new in (1, 5)]
    return [*results, ops.cached_attention(q[:, :1], k, v, None)]


def _dropout(trial: Trial, tokens: int) -> Pairs:
    """Output and gradient, under the very mask that was drawn, and how much of it was kept."""
    D = trial.head_size
    (qkv, upstream), (exact, exact_upstream) = trial.numbers((1, tokens, 3, 2, D), (1, tokens, 2, D))
    attend = _drawing_the_same(trial.ops.causal_attention, trial.device)
    y = attend(qkv, DROPOUT)
    kept = _weights(attend, qkv, DROPOUT).detach().cpu() != 0  # (B, H, T, T)
    dropped = _weights(trial.oracle.causal_attention, exact, 0.0) * kept / (1 - DROPOUT)
    expected = (dropped @ exact[:, :, 2].transpose(1, 2)).transpose(1, 2)  # (B, T, H, D)
    of_y = _gradients([y], [qkv], [upstream])
    of_expected = _gradients([expected], [exact], [exact_upstream])
    return [(y, expected), *zip(of_y, of_expected, strict=True), _share_of(kept)]


def _drawing_the_same(attend: CausalAttention, device: torch.device) -> CausalAttention:
    """Every call begins with the same state of torch's generators."""

    def again(qkv: Tensor, dropout: float) -> Tensor:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return attend(qkv, dropout)

    return again


def _weights(attend: CausalAttention, qkv: Tensor, dropout: float) -> Tensor:
    """(B, H, T, T), what each query takes from each key, read out with values that are 1 in one column for one key."""
    q, k, v = qkv.unbind(2)
    T, D = q.size(1), q.size(3)
    ones = torch.eye(T, -(-T // D) * D, dtype=qkv.dtype, device=qkv.device)  # (T, T or more)
    columns = []
    for start in range(0, T, D):
        v = ones[:, None, start : start + D].expand_as(v)  # (B, T, H, D)
        columns.append(attend(torch.stack([q, k, v], 2), dropout))
    return torch.cat(columns, -1)[..., :T].transpose(1, 2)


def _share_of(kept: Tensor) -> tuple[Tensor, Tensor]:
    """The share of weights that was kept, and the nearest one that chance allows: six standard deviations, and rounding."""
    B, H, T, _ = kept.shape
    drawn = B * H * T * (T + 1) // 2
    leeway = 6 * sqrt(DROPOUT * (1 - DROPOUT) / drawn) + 1 / 256
    share = kept.sum().double() / drawn
    return share, share.clamp(1 - DROPOUT - leeway, 1 - DROPOUT + leeway)


def _layer_norm(trial: Trial) -> Pairs:
    return trial.compare(_both_norms, *[(5, 65)] * 4, (65,), (65,))


def _both_norms(ops: Ops, numbers: list[Tensor]) -> list[Tensor]:
    residual, delta, up1, up2, weight, bias = numbers
    total, y = ops.add_layer_norm(residual, delta, weight, bias, 1e-5)
    after_addition = _gradients([total, y], [residual, delta, weight, bias], [up1, up2])
    alone = ops.layer_norm(residual, weight, bias, 1e-5)
    return [total, y, *after_addition, alone, *_gradients([alone], [residual, weight, bias], [up1])]


def _linear_cross_entropy(trial: Trial) -> Pairs:
    """Where the logits are no burden, and where our kernels never make them; training takes the sum."""
    pairs = _losses(trial, 33, 101, ("mean", "sum", "none")) + _losses(trial, 5, 16411, ("mean",))
    return pairs if trial.dtype == torch.float32 else pairs + _losses(trial.under_autocast(), 33, 101, ("sum",))


def _losses(trial: Trial, rows: int, ids: int, reductions: Sequence[Reduction]) -> Pairs:
    targets = torch.randint(ids, (rows,), generator=trial.generator)
    targets[3] = -100

    def run(ops: Ops, numbers: list[Tensor]) -> list[Tensor]:
        x, weight, of_sum, of_rows = numbers
        upstreams = {"mean": torch.ones_like(of_sum), "sum": of_sum, "none": of_rows}  # backward() gives the mean a 1
        results = []
        for reduction in reductions:
            loss = ops.linear_cross_entropy(x, weight, targets.to(x.device), 0.1, -100, 0.01, reduction)
            if loss.dtype.itemsize < 4:
                raise RuntimeError(f"the loss is {loss.dtype}; it must be fp32")
            upstream = upstreams[reduction].to(loss.dtype)
            results += [loss, *_gradients([loss], [x, weight], [upstream], overwrites=True)]
        return results

    return trial.compare(run, (rows, 32), (ids, 32), (), (rows,))


def _under_autocast(lose: LinearCrossEntropy, device: torch.device, dtype: torch.dtype) -> LinearCrossEntropy:
    def call(x: Tensor, weight: Tensor, targets: Tensor, *options: object) -> Tensor:
        with torch.autocast(device.type, dtype):
            return lose(x, weight, targets, *options)  # type: ignore[arg-type]

    return call  # type: ignore[return-value]


def _gradients(
    outputs: list[Tensor], inputs: list[Tensor], upstreams: list[Tensor], *, overwrites: bool = False
) -> list[Tensor]:
    """Of two backward passes; with `overwrites` the first's are written over before the second, as domain/tying.py does.

    A gradient that does not arrive is 0.
    """
    first = torch.autograd.grad(outputs, inputs, upstreams, retain_graph=True, materialize_grads=True)
    results = [gradient.clone() for gradient in first]
    if overwrites:
        for gradient in first:
            gradient.zero_()
    return [*results, *torch.autograd.grad(outputs, inputs, upstreams, materialize_grads=True)]


CASES: dict[str, Callable[[Trial], Pairs]] = {
    "attention": _attention,
    "layer_norm": _layer_norm,
    "linear_cross_entropy": _linear_cross_entropy,
}

"""How cost grows with one size: the exponent that measurements show, beside the one that counting gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from statistics import linear_regression, median

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.flops import flops_per_token


@dataclass(frozen=True)
class Point:
    """Cost at one size."""

    size: int
    seconds: list[float]
    """Each repeat: of an optimizer step, or of preparing the whole text."""
    memory_bytes: int
    """Peak above what the process held before the work began."""
    ideal_work: float
    """What counting makes the time proportional to: FLOPs, or bytes of text."""
    ideal_memory: float
    """What counting makes the memory proportional to: bytes."""


def curve(along: str, points: Sequence[Point]) -> dict[str, object]:
    """The row of one size that varies: points with their medians and spread, and measured and counted exponents.

    An exponent is the slope of the straight line through log cost over log size, fitted by least squares; the counted one
    is fitted to the counts at the same points, so that both have the same mixture of terms.
    """
    sizes = [p.size for p in points]
    return {
        "along": along,
        "points": [
            {
                "size": p.size,
                "seconds": median(p.seconds),
                "fastest": min(p.seconds),
                "slowest": max(p.seconds),
                "memory_bytes": p.memory_bytes,
            }
            for p in points
        ],
        "time_exponent": exponent(sizes, [median(p.seconds) for p in points]),
        "time_theory": exponent(sizes, [p.ideal_work for p in points]),
        "memory_exponent": exponent(sizes, [p.memory_bytes for p in points]),
        "memory_theory": exponent(sizes, [p.ideal_memory for p in points]),
    }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """k of the best fit cost ∝ size^k. Sizes are at least two different ones, and all numbers above 0."""
    return linear_regression([log(size) for size in sizes], [log(cost) for cost in costs]).slope


def step_flops(config: GPTConfig, batch_size: int) -> int:
    """Matrix-product FLOPs of an optimizer step on batch_size sequences."""
    return batch_size * config.block_size * flops_per_token(config)


def step_bytes(config: GPTConfig, batch_size: int, value_bytes: int) -> int:
    """Memory of an optimizer step, counted plainly: 16 bytes a parameter, and 16·n_embd kept values a token and layer.

    A parameter has its weight, gradient and AdamW's two moments in fp32. Kept for the backward pass are the inputs and
    outputs of both norms (4·C), q, k, v and the attention's output (4·C), and the MLP before and after its GELU (8·C), of
    value_bytes each. Left out: biases, dropout masks, attention weights where they are kept, and the loss's workspace.
    """
    C, L = config.n_embd, config.n_layer
    parameters = (config.vocab_size + config.block_size + 12 * L * C) * C
    return 16 * parameters + 16 * C * L * batch_size * config.block_size * value_bytes

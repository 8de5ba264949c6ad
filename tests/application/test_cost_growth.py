"""How cost grows: exponents recovered from known laws, and counts that follow the model."""

import pytest

from smallgpt.application.cost_growth import Point, curve, exponent, step_bytes, step_flops
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT


@pytest.mark.parametrize("k", [-0.5, 0.0, 1.0, 2.5])
def test_the_exponent_of_a_power_law_is_found(k: float) -> None:
    sizes = [3.0, 7.0, 50.0, 51.0]
    assert exponent(sizes, [4.2 * size**k for size in sizes]) == pytest.approx(k)


def test_a_curve_has_medians_and_both_exponents() -> None:
    points = [
        Point(10, [3.0, 1.0, 2.0], memory_bytes=100, ideal_work=5.0, ideal_memory=7.0),
        Point(20, [8.0], memory_bytes=100, ideal_work=10.0, ideal_memory=28.0),
    ]
    row = curve("n_embd", points)
    assert row["along"] == "n_embd"
    assert row["points"] == [
        {"size": 10, "seconds": 2.0, "fastest": 1.0, "slowest": 3.0, "memory_bytes": 100},
        {"size": 20, "seconds": 8.0, "fastest": 8.0, "slowest": 8.0, "memory_bytes": 100},
    ]
    assert row["time_exponent"] == pytest.approx(2)
    assert row["time_theory"] == pytest.approx(1)
    assert row["memory_exponent"] == pytest.approx(0, abs=1e-12)
    assert row["memory_theory"] == pytest.approx(2)


def test_counts_grow_as_the_model_does() -> None:
    small, wide = (GPTConfig(block_size=64, vocab_size=64, n_layer=32, n_embd=width) for width in (64, 1024))
    assert step_flops(small, 6) == 2 * step_flops(small, 3)
    growth = exponent([64, 1024], [step_flops(small, 1), step_flops(wide, 1)])
    assert 1.8 < growth < 2  # the blocks' matrices, with attention's linear part below them


def test_counted_memory_is_the_weights_and_a_linear_rest() -> None:
    config = GPTConfig(block_size=32, vocab_size=500, n_layer=3, n_embd=64, bias=False)
    norms = (2 * config.n_layer + 1) * config.n_embd  # left out of the count
    weights = 16 * (GPT(config).n_parameters(positions=True) - norms)
    one, two = (step_bytes(config, batch, 2) - weights for batch in (1, 2))
    assert two == 2 * one == 2 * 16 * 64 * 3 * 32 * 2

"""Learning rates against closed formulas, step by optimizer step."""

from math import cos, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from smallgpt.domain.config import ScheduleConfig
from smallgpt.domain.schedule import build_scheduler, learning_rates

NAMES = ["cosine", "warm-restarts", "linear", "wsd", "constant"]
PEAK = 3e-3


def steps(amount: float, total: int) -> int:
    return 0 if amount == 0 else max(1, round(amount if amount >= 1 else amount * total))


def formula(config: ScheduleConfig, total: int, s: int) -> float:
    """The share of the peak at step s of total, counted from 0."""
    warmup = steps(config.warmup, total)
    if s < warmup:
        return (s + 1) / (warmup + 1)
    k, n = s - warmup, max(1, total - warmup)
    if config.name == "constant":
        return 1.0
    if config.name == "linear":
        return 1 - (1 - config.floor) * k / n
    if config.name == "wsd":
        decay = min(steps(config.decay, n), n)
        return 1 - (1 - config.floor) * max(0, s - (total - decay)) / decay
    if config.name == "cosine":
        return config.floor + (1 - config.floor) * (1 + cos(pi * k / n)) / 2
    cycle = steps(config.restart, n)
    while k >= cycle:
        k -= cycle
        cycle *= config.restart_factor
    return config.floor + (1 - config.floor) * (1 + cos(pi * k / cycle)) / 2


@given(
    name=st.sampled_from(NAMES),
    total=st.integers(1, 60),
    warmup=st.sampled_from([0, 0.02, 0.3, 1, 5]),
    floor=st.sampled_from([0.0, 0.1, 1.0]),
    restart=st.sampled_from([0.25, 1, 7, 100]),
    factor=st.integers(1, 3),
    decay=st.sampled_from([0.3, 1, 9, 0.99, 100]),
)
def test_every_schedule_is_its_formula(
    name: str, total: int, warmup: float, floor: float, restart: float, factor: int, decay: float
) -> None:
    if steps(warmup, total) >= total:
        warmup = 0
    config = ScheduleConfig.model_validate(
        {"name": name, "warmup": warmup, "floor": floor, "restart": restart, "restart_factor": factor, "decay": decay}
    )
    expected = [PEAK * formula(config, total, s) for s in range(total)]
    assert learning_rates(config, PEAK, total) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_one_step_moves(name: str) -> None:
    for warmup in (0, 0.02):
        config = ScheduleConfig.model_validate({"name": name, "warmup": warmup})
        (rate,) = learning_rates(config, PEAK, 1)
        assert PEAK / 2 <= rate <= PEAK


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_the_last_step_is_near_the_floor(name: str) -> None:
    """The seed counted its schedule in micro-steps: after 10,000 steps the rate had hardly moved."""
    config = ScheduleConfig.model_validate({"name": name, "floor": 0.1})
    rates = learning_rates(config, PEAK, 500)
    assert max(rates) == pytest.approx(PEAK)
    assert rates[-1] == pytest.approx(0.1 * PEAK, rel=0.1)


def test_the_seeds_schedule_runs_from_1e_4_to_1e_5_and_starts_again() -> None:
    config = ScheduleConfig(name="warm-restarts", warmup=0, floor=0.1, restart=100)
    rates = learning_rates(config, 1e-4, 300)
    assert rates[0] == rates[100] == rates[200] == pytest.approx(1e-4)
    assert rates[50] == pytest.approx(5.5e-5)
    assert rates[99] == rates[199] == pytest.approx(1e-5, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [1, 4, 5, 6, 19])
def test_a_restored_scheduler_goes_on_to_the_bit(name: str, at: int) -> None:
    config = ScheduleConfig.model_validate({"name": name, "warmup": 5, "restart": 6, "decay": 7})
    expected = learning_rates(config, PEAK, 20)
    scheduler = build_scheduler(SGD([nn.Parameter()], lr=PEAK), config, 20)
    for _ in range(at):
        scheduler.optimizer.step()
        scheduler.step()
    optimizer = SGD([nn.Parameter()], lr=PEAK)
    resumed = build_scheduler(optimizer, config, 20)
    resumed.load_state_dict(scheduler.state_dict())
    optimizer.param_groups[0]["lr"] = resumed.get_last_lr()[0]
    rates = []
    for _ in range(at, 20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        resumed.step()
    assert rates == expected[at:]

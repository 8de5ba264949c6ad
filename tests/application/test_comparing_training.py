"""Training steps side by side: what counts, what does not, and what a row says."""

from types import SimpleNamespace

import pytest

from smallgpt.application import comparing_training
from smallgpt.application.comparing_training import Sitting, compare, time_steps


def sitting(system: str, seconds: list[float], peak: int, *, first: float = 5.0, flops: float = 1000.0) -> Sitting:
    return Sitting(
        system=system,
        first_step_seconds=first,
        seconds=seconds,
        tokens_per_step=100,
        peak_memory_bytes=peak,
        precision="fp32",
        peak_flops=flops,
    )


@pytest.mark.parametrize(("warmup", "times"), [(2, [1.0, 1.5, 2.0]), (0, [10.0, 1.0, 1.5])])
def test_warm_up_steps_run_and_do_not_count(monkeypatch: pytest.MonkeyPatch, warmup: int, times: list[float]) -> None:
    now, calls = [0.0], []
    monkeypatch.setattr(comparing_training, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def step(i: int) -> None:
        calls.append(i)
        now[0] += 30.0 if i == 0 else 10.0 if i < 2 else 0.5 * i

    assert time_steps(step, warmup=warmup, steps=3) == (30.0, times)
    assert calls == list(range(max(warmup, 1) + 3))


def test_systems_are_compared_with_the_first_by_medians_of_all_their_steps() -> None:
    rows = compare(
        [
            sitting("theirs", [1.0, 1.0, 9.0], 4000, first=9.0),
            sitting("ours", [0.5, 0.5, 0.5], 1000),
            sitting("theirs", [2.0, 2.0, 1.0], 5000, first=2.0),
            sitting("ours", [0.25, 0.25, 0.5], 900),
        ],
        flops_per_token=2.0,
    )
    theirs, ours = rows
    assert [row.system for row in rows] == ["theirs", "ours"]
    assert theirs.tokens_per_second == pytest.approx(100 / 1.5)  # median of 1 1 9 2 2 1
    assert (theirs.slowest, theirs.fastest, theirs.step_seconds) == (50.0, 100.0, 1.5)
    assert (theirs.peak_memory_bytes, theirs.first_step_seconds) == (5000, 9.0)
    assert (theirs.speed_ratio, theirs.memory_ratio) == (1.0, 1.0)
    assert ours.tokens_per_second == pytest.approx(200)
    assert (ours.slowest, ours.fastest) == (200.0, 400.0)
    assert ours.speed_ratio == pytest.approx(3)
    assert ours.memory_ratio == pytest.approx(0.2)


def test_the_ceiling_is_that_of_the_same_sitting() -> None:
    slow_machine, fast_machine = sitting("ours", [1.0], 1, flops=1000.0), sitting("ours", [0.5], 1, flops=2000.0)
    (row,) = compare([slow_machine, fast_machine], flops_per_token=6.0)
    assert row.ceiling_fraction == pytest.approx(0.6)  # 6 · 100 tokens/s of 1000, and 6 · 200 of 2000


def test_nothing_measured_is_nothing_compared() -> None:
    assert compare([], 1.0) == []

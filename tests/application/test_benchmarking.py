"""Timing: what counts, what does not, and how systems are put side by side."""

from types import SimpleNamespace

import pytest

from smallgpt.application import benchmarking
from smallgpt.application.benchmarking import OperationTimes, Sitting, compare, rank, time_steps


def test_warm_up_steps_run_and_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []
    monkeypatch.setattr(benchmarking, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def step(i: int) -> None:
        calls.append(i)
        now[0] += 10.0 if i < 2 else 0.5 * i

    assert time_steps(step, warmup=2, steps=3) == [1.0, 1.5, 2.0]
    assert calls == [0, 1, 2, 3, 4]


def test_systems_are_compared_with_the_first_by_medians_of_all_their_steps() -> None:
    rows = compare(
        [
            Sitting("theirs", [1.0, 1.0, 9.0], 100, 4000),
            Sitting("ours", [0.5, 0.5, 0.5], 100, 1000),
            Sitting("theirs", [2.0, 2.0, 1.0], 100, 5000),
            Sitting("ours", [0.25, 0.25, 0.5], 100, 900),
        ]
    )
    theirs, ours = rows
    assert [row.system for row in rows] == ["theirs", "ours"]
    assert theirs.tokens_per_second == pytest.approx(100 / 1.5)  # median of 1 1 9 2 2 1
    assert (theirs.slowest, theirs.fastest) == (50.0, 100.0)
    assert theirs.peak_memory_bytes == 5000
    assert (theirs.speed_ratio, theirs.memory_ratio) == (1.0, 1.0)
    assert ours.tokens_per_second == pytest.approx(200)
    assert (ours.slowest, ours.fastest) == (200.0, 400.0)
    assert ours.speed_ratio == pytest.approx(3)
    assert ours.memory_ratio == pytest.approx(0.2)


def test_nothing_measured_is_nothing_compared() -> None:
    assert compare([]) == []


def test_operations_are_ranked_among_those_of_their_direction() -> None:
    rows = rank(
        [
            OperationTimes("ours", "forward", [[1.0, 2.0, 3.0], [4.0, 6.0, 5.0]], "clock"),
            OperationTimes("slow", "forward", [[7.0], [7.0]], "clock"),
            OperationTimes("fast", "forward", [[2.0], [3.0]], "clock"),
            OperationTimes("ours", "both", [[8.0]], "graph", extra_memory_bytes=5),
        ],
        {"forward": 0.5, "both": 4.0},
    )
    ours, slow, fast, alone = rows
    assert (ours.milliseconds, ours.fastest, ours.slowest) == (3.5, 2.0, 5.0)
    assert [row.ratio_to_best for row in rows] == [pytest.approx(2.5 / 3.5), pytest.approx(2.5 / 7), 3.5 / 2.5, None]
    assert slow.ceiling_fraction == pytest.approx(0.5 / 7)
    assert alone.ceiling_fraction == 0.5
    assert (fast.extra_memory_bytes, alone.extra_memory_bytes, alone.how) == (None, 5, "graph")

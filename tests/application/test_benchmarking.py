"""Timing: what counts, what does not, and how systems are put side by side."""

from types import SimpleNamespace

import pytest

from smallgpt.application import benchmarking
from smallgpt.application.benchmarking import Ceilings, OperationTimes, Sitting, compare, rank, three_digits, time_steps
from smallgpt.application.operation_costs import Direction, Work


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
        {"forward": Work(flops=5e9, bytes=1e6), "both": Work(flops=4e10, bytes=1e7)},
        "flops",
        Ceilings(flops=1e13, bytes=1e11),
    )
    ours, slow, fast, alone = rows
    assert (ours.milliseconds, ours.fastest, ours.slowest) == (3.5, 2.0, 5.0)
    assert [row.ratio_to_best for row in rows] == [pytest.approx(2.5 / 3.5), pytest.approx(2.5 / 7), 3.5 / 2.5, None]
    assert slow.ceiling_fraction == pytest.approx(0.5 / 7)
    assert alone.ceiling_fraction == pytest.approx(0.5)
    assert alone.rate == pytest.approx(5.0)  # 4e10 in 8 ms
    assert alone.rate_unit == "TFLOP/s"
    assert (ours.arithmetic_intensity, alone.arithmetic_intensity) == (5000, 4000)
    assert (fast.extra_memory_bytes, alone.extra_memory_bytes, alone.how) == (None, 5, "graph")


def test_what_memory_bounds_is_told_in_bytes_and_measured_against_the_copy() -> None:
    work: dict[Direction, Work] = {"forward": Work(flops=3e6, bytes=1e6)}
    (row,) = rank([OperationTimes("ours", "forward", [[2.0]], "clock")], work, "bytes", Ceilings(1e13, 1e9))
    assert row.rate == pytest.approx(0.5)
    assert row.rate_unit == "GB/s"
    assert row.ceiling_fraction == pytest.approx(0.5)
    assert row.arithmetic_intensity == 3


@pytest.mark.parametrize(
    ("number", "words"), [(0.012345, "0.0123"), (99.94, "99.9"), (100.2, "100"), (2604.0, "2,604")]
)
def test_rates_are_written_out(number: float, words: str) -> None:
    assert three_digits(number) == words

"""What timings of an operation say, beside the ceiling and the other systems."""

import pytest

from smallgpt.application.benchmarking import Ceilings, OperationTimes, rank, three_digits
from smallgpt.application.operation_costs import Direction, Work


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

"""What timings of an operation say, beside the ceiling and the other systems."""

import pytest

from smallgpt.application.benchmarking import OperationTimes, rank


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

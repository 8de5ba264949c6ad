"""Generation side by side: tokens of all streams together, compared among systems with as many streams."""

import pytest

from smallgpt.application.comparing_generation import GenerationSitting, compare_generation


def sitting(system: str, streams: int, seconds: float, peak: int, first: float = 0.5) -> GenerationSitting:
    return GenerationSitting(system, streams, 10, seconds, first, peak, 1000, 2000)


def test_systems_are_compared_with_the_first_that_has_as_many_streams() -> None:
    rows = compare_generation(
        [
            sitting("slow", 1, 1.0, 400, first=0.1),
            sitting("fast", 1, 0.5, 100),
            sitting("slow", 1, 2.0, 300, first=0.2),
            sitting("slow", 1, 5.0, 300, first=0.9),
            sitting("slow", 4, 1.0, 800),
            sitting("fast", 4, 0.25, 200),
        ],
        bytes_per_second=100.0,
        flops_per_second=8000.0,
    )
    slow, fast, slow_of_four, fast_of_four = rows
    assert [(row.system, row.streams) for row in rows] == [("slow", 1), ("fast", 1), ("slow", 4), ("fast", 4)]
    assert (slow.tokens_per_second, slow.slowest, slow.fastest) == (5.0, 2.0, 10.0)
    assert (slow.peak_memory_bytes, slow.first_token_seconds) == (400, 0.2)
    assert (slow.speed_ratio, slow.memory_ratio, slow_of_four.speed_ratio) == (1.0, 1.0, 1.0)
    assert (fast.speed_ratio, fast.memory_ratio) == (4.0, 0.25)
    assert (slow_of_four.tokens_per_second, fast_of_four.tokens_per_second) == (40.0, 160.0)
    assert fast_of_four.speed_ratio == pytest.approx(4.0)
    assert fast.bandwidth_fraction == pytest.approx(1000 * 20 / 100), "20 tokens a second read 1,000 bytes each"
    assert fast_of_four.bandwidth_fraction == pytest.approx(1000 * 160 / 4 / 100), "read once for four"
    assert slow.prefill_fraction == pytest.approx(2000 / 0.2 / 8000)

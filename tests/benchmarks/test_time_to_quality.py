"""When a run passed a result, read from its metrics."""

from typing import Any

from tests.benchmarks.time_to_quality import seconds_to


def trained(step: int, seconds: float) -> dict[str, Any]:
    return {"event": "train", "step": step, "seconds": seconds}


def scored(step: int, bits: float | None, *, final: bool = False) -> dict[str, Any]:
    return {"event": "validation", "step": step, "bits_per_byte": bits, "final": final}


EVENTS = [
    {"event": "start", "step": 0},
    scored(0, 7.0),
    trained(1, 2.0),
    trained(2, 3.0),
    scored(2, 1.9),
    trained(3, 8.0),
    scored(3, 1.7),
    trained(4, 9.0),
    scored(4, 1.6),
    scored(4, 1.5, final=True),
]


def test_the_first_evaluation_that_is_good_enough_tells_the_time() -> None:
    assert seconds_to(EVENTS, 1.9) == 3.0
    assert seconds_to(EVENTS, 1.73) == 8.0


def test_what_the_loop_did_not_see_is_not_told() -> None:
    assert seconds_to(EVENTS, 1.55) is None  # only the final evaluation found it
    assert seconds_to([trained(1, 2.0), scored(1, None)], 9.0) is None
    assert seconds_to([scored(0, 1.0)], 9.0) is None  # untrained

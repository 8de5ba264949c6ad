"""What timings of one operation say: medians with their spread, beside the ceiling and the best other system."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from smallgpt.application.operation_costs import Direction


@dataclass(frozen=True)
class OperationTimes:
    """One system computing one operation in one direction, timed in several rounds."""

    system: str
    direction: Direction
    rounds: list[list[float]]
    """Milliseconds of each repeat, a list a round."""
    how: str
    """What the time was taken with: "graph" and "events" on a GPU, "clock" on a CPU."""
    extra_memory_bytes: int | None = None
    """Peak above the operands and their gradients, where it was measured."""


@dataclass(frozen=True)
class OperationRow:
    """What `smallgpt bench attention` and its like say of a system, beside the others at the same shape and direction."""

    system: str
    direction: Direction
    milliseconds: float
    """Median over all repeats."""
    fastest: float
    slowest: float
    """Medians of the fastest and the slowest round."""
    ceiling_fraction: float
    """Time the least work takes at the measured peak of the hardware ÷ the time taken."""
    ratio_to_best: float | None
    """Milliseconds of the best other system ÷ this one's: above 1, nobody is faster. None without another."""
    how: str
    extra_memory_bytes: int | None


def rank(timings: Iterable[OperationTimes], ideal_milliseconds: Mapping[Direction, float]) -> list[OperationRow]:
    """One row a timing, in order; ideal_milliseconds by direction. All timings are of one shape."""
    timings = list(timings)
    medians = {(t.system, t.direction): median([ms for each in t.rounds for ms in each]) for t in timings}
    rows = []
    for t in timings:
        own = medians[t.system, t.direction]
        others = [ms for (system, way), ms in medians.items() if way == t.direction and system != t.system]
        of_rounds = sorted(median(each) for each in t.rounds)
        rows.append(
            OperationRow(
                system=t.system,
                direction=t.direction,
                milliseconds=own,
                fastest=of_rounds[0],
                slowest=of_rounds[-1],
                ceiling_fraction=ideal_milliseconds[t.direction] / own,
                ratio_to_best=min(others) / own if others else None,
                how=t.how,
                extra_memory_bytes=t.extra_memory_bytes,
            )
        )
    return rows

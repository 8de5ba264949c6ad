"""What timings of one operation say: medians with their spread, beside the ceiling and the best other system."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from smallgpt.application.operation_costs import Bound, Direction, Work


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
class Ceilings:
    """What the hardware reaches at best, measured in the same run."""

    flops: float
    """Per second, of a large matrix product in the operands' dtype."""
    bytes: float
    """Per second, of a large copy: what is read and what is written."""


RATES: dict[Bound, tuple[str, float]] = {"flops": ("TFLOP/s", 1e12), "bytes": ("GB/s", 1e9)}
"""The unit that an operation's speed is told in, and what one of it is."""


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
    rate: float
    """The least work ÷ the time taken, in rate_unit."""
    rate_unit: str
    """TFLOP/s where products decide, GB/s where memory does."""
    ceiling_fraction: float
    """The rate ÷ that of a large product or copy."""
    arithmetic_intensity: float
    """FLOPs a byte of the least work."""
    ratio_to_best: float | None
    """Milliseconds of the best other system ÷ this one's: above 1, nobody is faster. None without another."""
    how: str
    extra_memory_bytes: int | None


def three_digits(number: float) -> str:
    """A rate for people: 0.0123, 4.56, 2,600."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def rank(
    timings: Iterable[OperationTimes], work: Mapping[Direction, Work], bound: Bound, ceilings: Ceilings
) -> list[OperationRow]:
    """One row a timing, in order; the least work by direction. All timings are of one shape."""
    timings = list(timings)
    unit, one = RATES[bound]
    medians = {(t.system, t.direction): median([ms for each in t.rounds for ms in each]) for t in timings}
    rows = []
    for t in timings:
        own = medians[t.system, t.direction]
        others = [ms for (system, way), ms in medians.items() if way == t.direction and system != t.system]
        of_rounds = sorted(median(each) for each in t.rounds)
        per_second = getattr(work[t.direction], bound) / (1e-3 * own)
        rows.append(
            OperationRow(
                system=t.system,
                direction=t.direction,
                milliseconds=own,
                fastest=of_rounds[0],
                slowest=of_rounds[-1],
                rate=per_second / one,
                rate_unit=unit,
                ceiling_fraction=per_second / getattr(ceilings, bound),
                arithmetic_intensity=work[t.direction].intensity,
                ratio_to_best=min(others) / own if others else None,
                how=t.how,
                extra_memory_bytes=t.extra_memory_bytes,
            )
        )
    return rows

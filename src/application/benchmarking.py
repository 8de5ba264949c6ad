"""Timing done so that it can be believed: warm-up first, medians with their spread, systems in turn."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from smallgpt.application.operation_costs import Bound, Direction, Work


@dataclass(frozen=True)
class Sitting:
    """One system trained for some steps in a process of its own."""

    system: str
    seconds: list[float]
    """Per step, after warm-up."""
    tokens_per_step: int
    peak_memory_bytes: int
    """Of the whole process on a CPU (libraries included), of the allocator on a GPU."""


@dataclass(frozen=True)
class Comparison:
    """A system's sittings put together."""

    system: str
    tokens_per_second: float
    """Median over the steps of all sittings."""
    slowest: float
    fastest: float
    """Medians of the slowest and the fastest sitting."""
    peak_memory_bytes: int
    """Largest of the sittings."""
    speed_ratio: float
    """tokens_per_second ÷ that of the first system."""
    memory_ratio: float
    """peak_memory_bytes ÷ that of the first system."""


def time_steps(step: Callable[[int], object], *, warmup: int, steps: int) -> list[float]:
    """Seconds of each of `steps` calls step(i), after `warmup` calls that do not count."""
    for i in range(warmup):
        step(i)
    seconds = []
    for i in range(warmup, warmup + steps):
        start = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - start)
    return seconds


def compare(sittings: Iterable[Sitting]) -> list[Comparison]:
    """One row a system, in order of appearance; ratios are against the first."""
    by_system: dict[str, list[Sitting]] = {}
    for sitting in sittings:
        by_system.setdefault(sitting.system, []).append(sitting)
    rows = []
    base_rate = base_memory = 0.0
    for system, own in by_system.items():
        rates = sorted(s.tokens_per_step / median(s.seconds) for s in own)
        rate = own[0].tokens_per_step / median([t for s in own for t in s.seconds])
        memory = max(s.peak_memory_bytes for s in own)
        base_rate, base_memory = base_rate or rate, base_memory or memory
        rows.append(Comparison(system, rate, rates[0], rates[-1], memory, rate / base_rate, memory / base_memory))
    return rows


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

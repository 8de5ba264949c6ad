"""Training steps of several systems put side by side: warm-up apart, medians with their spread, systems in turn."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Sitting:
    """One system trained for some steps in a process of its own."""

    system: str
    first_step_seconds: float
    """Of the step that allocates and, where there is something to compile, compiles."""
    seconds: list[float]
    """Per step, after warm-up."""
    tokens_per_step: int
    peak_memory_bytes: int
    """Of the whole process on a CPU (libraries included), of the allocator on a GPU."""
    precision: str
    """Of matrix products: fp32, bf16 or fp16."""
    peak_flops: float
    """FLOP/s of a large matrix product in that precision, measured after the steps."""


@dataclass(frozen=True)
class Comparison:
    """A system's sittings put together."""

    system: str
    precision: str
    tokens_per_second: float
    """Median over the steps of all sittings."""
    slowest: float
    fastest: float
    """Medians of the slowest and the fastest sitting."""
    step_seconds: float
    """Median over the steps of all sittings."""
    first_step_seconds: float
    """Longest of the sittings: later ones may find what the compiler kept on disk."""
    peak_memory_bytes: int
    """Largest of the sittings."""
    speed_ratio: float
    """tokens_per_second ÷ that of the first system."""
    memory_ratio: float
    """peak_memory_bytes ÷ that of the first system."""
    ceiling_fraction: float
    """FLOPs of the model's matrix products a second ÷ the matmul peak of the same sitting; median of the sittings."""


def time_steps(step: Callable[[int], object], *, warmup: int, steps: int) -> tuple[float, list[float]]:
    """Seconds of step(0), and of each of `steps` calls step(i) after `warmup` calls (at least the first) that do not count."""
    seconds = []
    for i in range(max(warmup, 1) + steps):
        start = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[max(warmup, 1) :]


def compare(sittings: Iterable[Sitting], flops_per_token: float) -> list[Comparison]:
    """One row a system, in order of appearance; ratios are against the first. All sittings are of one model."""
    by_system: dict[str, list[Sitting]] = {}
    for sitting in sittings:
        by_system.setdefault(sitting.system, []).append(sitting)
    rows = []
    base_rate = base_memory = 0.0
    for system, own in by_system.items():
        rates = [s.tokens_per_step / median(s.seconds) for s in own]
        step_seconds = median([t for s in own for t in s.seconds])
        rate = own[0].tokens_per_step / step_seconds
        memory = max(s.peak_memory_bytes for s in own)
        base_rate, base_memory = base_rate or rate, base_memory or memory
        fractions = [flops_per_token * r / s.peak_flops for r, s in zip(rates, own, strict=True)]
        rows.append(
            Comparison(
                system=system,
                precision=own[0].precision,
                tokens_per_second=rate,
                slowest=min(rates),
                fastest=max(rates),
                step_seconds=step_seconds,
                first_step_seconds=max(s.first_step_seconds for s in own),
                peak_memory_bytes=memory,
                speed_ratio=rate / base_rate,
                memory_ratio=memory / base_memory,
                ceiling_fraction=median(fractions),
            )
        )
    return rows

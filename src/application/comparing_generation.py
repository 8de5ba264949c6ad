"""Generation by several systems put side by side, for one sequence and for many at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class GenerationSitting:
    """One system continuing `streams` prompts again and again, after warm-up, in a process of its own."""

    system: str
    streams: int
    new_tokens: int
    """A stream."""
    seconds: float
    """For all of them; median of the sitting's repeats."""
    first_token_seconds: float
    """From the prompts to the first token of every stream; median likewise."""
    peak_memory_bytes: int
    """Of the whole process on a CPU (libraries included), of the allocator on a GPU."""
    weight_bytes: int
    """Of the matrices that a new token is multiplied with."""
    prefill_flops: int
    """Matrix-product FLOPs between the prompts and the first tokens that no system can do without."""


@dataclass(frozen=True)
class GenerationRow:
    """A system's sittings with one number of streams put together."""

    system: str
    streams: int
    tokens_per_second: float
    """Of all streams together; median of the sittings."""
    slowest: float
    fastest: float
    first_token_seconds: float
    """Median of the sittings."""
    peak_memory_bytes: int
    """Largest of the sittings."""
    speed_ratio: float
    """tokens_per_second ÷ that of the first system with as many streams."""
    memory_ratio: float
    """peak_memory_bytes ÷ that of the first system with as many streams."""
    bandwidth_fraction: float
    """Weights read a second, once for the tokens of all streams, ÷ what the machine reads: above 1 only out of its caches."""
    prefill_fraction: float
    """FLOPs from the prompts to the first tokens a second ÷ those of a large float32 product."""


def compare_generation(
    sittings: Iterable[GenerationSitting], *, bytes_per_second: float, flops_per_second: float
) -> list[GenerationRow]:
    """One row for each number of streams and system, in order of appearance, beside what the machine can do."""
    groups: dict[int, dict[str, list[GenerationSitting]]] = {}
    for sitting in sittings:
        groups.setdefault(sitting.streams, {}).setdefault(sitting.system, []).append(sitting)
    rows = []
    for streams, by_system in groups.items():
        base_rate = base_memory = 0.0
        for system, own in by_system.items():
            rates = [s.streams * s.new_tokens / s.seconds for s in own]
            rate, memory = median(rates), max(s.peak_memory_bytes for s in own)
            first = median(s.first_token_seconds for s in own)
            base_rate, base_memory = base_rate or rate, base_memory or memory
            rows.append(
                GenerationRow(
                    system=system,
                    streams=streams,
                    tokens_per_second=rate,
                    slowest=min(rates),
                    fastest=max(rates),
                    first_token_seconds=first,
                    peak_memory_bytes=memory,
                    speed_ratio=rate / base_rate,
                    memory_ratio=memory / base_memory,
                    bandwidth_fraction=own[0].weight_bytes * rate / streams / bytes_per_second,
                    prefill_fraction=own[0].prefill_flops / first / flops_per_second,
                )
            )
    return rows

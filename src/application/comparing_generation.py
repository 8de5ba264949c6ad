"""Generation by several systems put side by side, for one sequence and for many at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class GenerationSitting:
    """One system continuing `streams` prompts once, after warm-up, in a process of its own."""

    system: str
    streams: int
    new_tokens: int
    """A stream."""
    seconds: float
    """For all of them."""
    first_token_seconds: float
    """From the prompts to the first token of every stream."""
    peak_memory_bytes: int
    """Of the whole process on a CPU (libraries included), of the allocator on a GPU."""


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


def compare_generation(sittings: Iterable[GenerationSitting]) -> list[GenerationRow]:
    """One row for each number of streams and system, in order of appearance."""
    groups: dict[int, dict[str, list[GenerationSitting]]] = {}
    for sitting in sittings:
        groups.setdefault(sitting.streams, {}).setdefault(sitting.system, []).append(sitting)
    rows = []
    for streams, by_system in groups.items():
        base_rate = base_memory = 0.0
        for system, own in by_system.items():
            rates = [s.streams * s.new_tokens / s.seconds for s in own]
            rate, memory = median(rates), max(s.peak_memory_bytes for s in own)
            base_rate, base_memory = base_rate or rate, base_memory or memory
            rows.append(
                GenerationRow(
                    system=system,
                    streams=streams,
                    tokens_per_second=rate,
                    slowest=min(rates),
                    fastest=max(rates),
                    first_token_seconds=median(s.first_token_seconds for s in own),
                    peak_memory_bytes=memory,
                    speed_ratio=rate / base_rate,
                    memory_ratio=memory / base_memory,
                )
            )
    return rows

"""Where the seconds of a command went, by phase."""

import os
import time
from collections import defaultdict
from pathlib import Path

_command_began: float | None = None  # by perf_counter


def begin_command(seconds_ago: float = 0.0) -> None:
    """Phases.of_command() counts from here; a process runs one command at a time."""
    global _command_began
    _command_began = time.perf_counter() - seconds_ago


class Phases:
    """A clock that is read at the end of each phase: what passed since the last reading is that phase's."""

    def __init__(self, began: float | None = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        """By phase, in order."""
        self.last = time.perf_counter() if began is None else began

    @classmethod
    def of_command(cls) -> "Phases":
        """Counted from the start of the command, and of its process where that runs nothing else."""
        return cls(_command_began)

    def end(self, phase: str) -> None:
        """Book the time since the last call."""
        now = time.perf_counter()
        self.seconds[phase] += now - self.last
        self.last = now

    def rounded(self) -> dict[str, float]:
        """To milliseconds, for a record."""
        return {phase: round(seconds, 3) for phase, seconds in self.seconds.items()}


def in_words(seconds: dict[str, float]) -> str:
    """3.1 s: imports 1.9, data 0.4, kernels 0.3"""
    parts = ", ".join(f"{phase} {spent:.1f}" for phase, spent in seconds.items())
    return f"{sum(seconds.values()):.1f} s: {parts}"


def process_age() -> float:
    """Seconds since this process was started, from Linux's /proc (proc(5), starttime); 0 where there is none."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of all; the name before may hold spaces
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)

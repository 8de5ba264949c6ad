"""How many processors this process may use. Linux."""

import os
from math import ceil
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
CONTROL_GROUP = Path("/sys/fs/cgroup")


def usable() -> int:
    """Hardware threads that the scheduler may put this process on."""
    return len(os.sched_getaffinity(0))


def cores() -> int:
    """Physical cores among them: two hardware threads of one core count once."""
    seen = {_core(cpu) for cpu in os.sched_getaffinity(0)}
    return len(seen)


def quota() -> int | None:
    """Processors' worth of time that this control group (version 2) grants, rounded up; None without a limit.

    Threads beyond it are all stopped together when the time of a period is used up.
    """
    words = _read(CONTROL_GROUP / "cpu.max").split()
    if len(words) != 2 or not words[0].isdigit():
        return None
    return max(1, ceil(int(words[0]) / int(words[1])))


def _core(cpu: int) -> tuple[str, str]:
    """(package, core); a processor of its own where the kernel does not say."""
    folder = TOPOLOGY / f"cpu{cpu}" / "topology"
    return _read(folder / "physical_package_id"), _read(folder / "core_id") or f"cpu{cpu}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

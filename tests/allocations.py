"""What torch's allocator hands out on a CPU, counted block by block: temporaries inside operations included."""

from collections.abc import Callable
from typing import NamedTuple

from torch.autograd.profiler import profile


class Allocated(NamedTuple):
    """Bytes, of blocks that were handed out while an action ran."""

    peak: int
    left: int
    """Not given back when the action ended."""


def allocated(action: Callable[[], object]) -> Allocated:
    """The bytes that torch has handed out and not got back, while and after the action ran."""
    with profile(profile_memory=True, use_kineto=True) as profiler:  # torch.profiler's would build a tree of all events
        action()
    assert profiler.kineto_results is not None
    events = profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    now = peak = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        now += change
        peak = max(peak, now)
    return Allocated(peak, now)

"""How much memory a piece of work takes at its peak, as torch's allocator counts it: on a CPU the same as on a GPU."""

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd.profiler import profile


class Allocated(NamedTuple):
    """Bytes, of blocks that were handed out while something ran."""

    peak: int
    left: int
    """Not given back when it ended."""


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes allocated at a time while run() runs and its result is held, above what was allocated before.

    Tensors count, and the workspaces that torch's kernels allocate like tensors. What a library takes past torch's
    allocator does not (oneDNN's scratchpads on a CPU). The resident size of the process would hold those too, but also what
    malloc keeps after a free, and so depends on what ran before. run() must free nothing that it has not allocated.
    """
    if device.type == "cpu":
        return allocated_on_cpu(run).peak
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def allocated_on_cpu(run: Callable[[], object]) -> Allocated:
    """What torch's CPU allocator hands out, block by block: temporaries inside operations included."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch 2.13 writes a line to stderr at every start and stop
    with profile(profile_memory=True, use_kineto=True) as profiler:  # torch.profiler's would build a tree of all events
        result = run()
    del result
    assert profiler.kineto_results is not None
    now = peak = 0
    for event in sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()  # negative when freed
            peak = max(peak, now)
    return Allocated(peak, now)

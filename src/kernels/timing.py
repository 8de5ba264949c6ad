"""How long a piece of work takes on a device, in milliseconds: for the benchmarks, the tuner and the check on a GPU.

On a GPU by CUDA events, after the L2 cache was overwritten, and where it can be captured as one CUDA graph, so that
nobody's Python is measured; on a CPU by the clock.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch

FLUSH_BYTES = 256 * 2**20  # more than any L2 cache
WARMUP = 3

Run = Callable[[], object]
Prepare = Callable[[], Run]
"""Does what is not timed, and returns what is: for a backward pass it runs the forward one."""

How = Literal["graph", "events", "clock"]


@dataclass(frozen=True)
class Samples:
    """Repeated timings of one piece of work."""

    milliseconds: list[float]
    how: How
    """ "graph" or "events" on a GPU, "clock" on a CPU."""


def measure(prepare: Prepare, device: torch.device, seconds: float = 0.1) -> Samples:
    """Time what prepare() returns again and again for about `seconds`, after a warm-up that does not count."""
    if device.type == "cuda":
        return _measure_on_gpu(prepare, device, seconds)
    prepare()()
    first = _clocked(prepare)
    return Samples([first, *(_clocked(prepare) for _ in range(_repeats(first, seconds, 3, 100) - 1))], "clock")


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a large copy, read and write counted: the ceiling of what only moves memory.

    Of random bits: zeros could be compressed, or shared pages.
    """
    size = 2**28 if device.type == "cuda" else 2**26
    source = torch.empty(size // 8, dtype=torch.int64, device=device).random_()
    target = torch.empty_like(source)
    samples = measure(lambda: lambda: target.copy_(source), device, seconds=0.2)
    return 2 * size / (min(samples.milliseconds) * 1e-3)


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of the sum of what no cache holds: the ceiling of what reads all of a model for every token."""
    source = torch.empty(2**28 // 4, dtype=torch.float32, device=device).uniform_()
    samples = measure(lambda: source.sum, device, seconds=0.5)
    return 2**28 / (min(samples.milliseconds) * 1e-3)


def _clocked(prepare: Prepare) -> float:
    run = prepare()
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _repeats(milliseconds: float, seconds: float, least: int, most: int) -> int:
    return max(least, min(most, ceil(1e3 * seconds / max(milliseconds, 1e-3))))


def _measure_on_gpu(prepare: Prepare, device: torch.device, seconds: float) -> Samples:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            prepare()()
        # Before the capture: a captured backward pass reads memory that is free by then, and must stay as it is.
        flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        replay = _captured(prepare, stream)
        again: Prepare = prepare if replay is None else (lambda: replay)
        first = _evented(again, flush, 3)
        milliseconds = _evented(again, flush, _repeats(min(first), seconds, 10, 500))
    return Samples(milliseconds, "events" if replay is None else "graph")


def _captured(prepare: Prepare, stream: torch.cuda.Stream) -> Run | None:
    """What prepare() returns, as one CUDA graph; None where it cannot be captured, because it waits for the GPU."""
    run = prepare()
    torch.cuda.synchronize(stream.device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            run()
    except RuntimeError:
        torch.cuda.synchronize(stream.device)
        return None

    return graph.replay


def _evented(prepare: Prepare, flush: torch.Tensor, repeats: int) -> list[float]:
    """GPU time of each repeat. The flush also gives the CPU time to queue the work before the GPU gets to it."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]  # type: ignore[no-untyped-call]
    for start, end in events:
        run = prepare()
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize(flush.device)
    return [start.elapsed_time(end) for start, end in events]

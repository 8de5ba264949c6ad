"""Many launches compiled at once, a process a core: the compiler keeps Python's lock, so threads would only wait."""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context

from smallgpt.kernels import compiling
from smallgpt.kernels.compile_report import Row
from smallgpt.kernels.compiling import Job


def compile_all(jobs: Sequence[Job], processes: int | None = None) -> Iterator[Row]:
    """Rows as they are done, in any order; `processes` defaults to one a core, and few jobs are done in this process.

    A launch that makes the compiler crash gets a row that says so.
    """
    processes = min(len(jobs), processes or len(os.sched_getaffinity(0)))
    if processes < 2:
        yield from map(compiling.compile_job, jobs)
        return
    interrupted: list[Job] = []
    with _pool(processes) as pool:
        futures = {pool.submit(compiling.compile_job, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool:  # one crashed, and took the rest along
                    interrupted.append(futures[future])
        finally:
            pool.shutdown(cancel_futures=True)
    yield from _compile_apart(interrupted)


def _compile_apart(jobs: list[Job]) -> Iterator[Row]:
    """One at a time, so that it shows which of them crashes."""
    while jobs:
        with _pool(1) as pool:
            while jobs:
                job = jobs.pop()
                try:
                    yield pool.submit(compiling.compile_job, job).result()
                except BrokenProcessPool:
                    yield replace(job.row, error="the compiler crashed")
                    break


def _pool(processes: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a copy of a process that has run torch's threads can hang.
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_the_parent)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

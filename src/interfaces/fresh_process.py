"""Work done in a process of its own, so that its peak memory, caches and compiled code are its own."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

from smallgpt.domain.errors import HardwareError

P = ParamSpec("P")
T = TypeVar("T")


def in_fresh_process(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What function(*arguments, **named) returns or raises there. Raises HardwareError when the process is killed."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments, **named).result()
        except BrokenProcessPool:
            raise HardwareError(
                "a process of the benchmark was killed, most likely for its memory; use smaller sizes"
            ) from None

"""The first Ctrl-C, SIGTERM or hang-up asks a run to save and stop; the second ends it at once, or its launcher does."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class StopRequest:
    """The signal that asked, if one did."""

    signal: int | None = None
    launcher: int | None = None
    """The process that started this one and would pass on a signal. When it is gone, nobody will: that is a hang-up."""

    def __call__(self) -> bool:
        """Has anybody asked?"""
        if self.launcher is not None and os.getppid() != self.launcher:
            self.signal = self.signal or signal.SIGHUP
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + signal, the shell's convention: 130, 143 or, for a closed terminal, 129."""
        return 128 + (self.signal or 0)


def obeyed(*numbers: int) -> dict[int, Any]:
    """The handlers of those signals that are not ignored from the start, as nohup has SIGHUP: such stay ignored."""
    handlers = {number: signal.getsignal(number) for number in numbers}
    return {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}


@contextmanager
def handling(handler: Callable[[int, FrameType | None], Any], *numbers: int) -> Iterator[None]:
    """Within it those signals call the handler, unless they are ignored from the start; then what they called before."""
    former = obeyed(*numbers)
    for number in former:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


@contextmanager
def stop_signals(*, launched: bool = False) -> Iterator[StopRequest]:
    """Within it SIGINT, SIGTERM and SIGHUP are noted instead of obeyed; after the first, the next does what it did before.

    In a process that a launcher started the next ones change nothing: a batch system signals every process, and the
    launcher, being one, passes the signal on once more. The launcher also kills what takes too long.
    """
    request = StopRequest(launcher=os.getppid() if launched else None)
    former = obeyed(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def obey_again() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        request.signal = number
        if not launched:
            obey_again()

    for number in former:
        signal.signal(number, note)
    try:
        yield request
    finally:
        obey_again()

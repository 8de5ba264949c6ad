"""The first Ctrl-C, SIGTERM or hang-up asks a run to save and stop; the second ends it at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """The signal that asked, if one did."""

    signal: int | None = None

    def __call__(self) -> bool:
        """Has anybody asked?"""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + signal, the shell's convention: 130, 143 or, for a closed terminal, 129."""
        return 128 + (self.signal or 0)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Within it SIGINT, SIGTERM and SIGHUP are noted instead of obeyed; after the first, the next does what it did before."""
    request = StopRequest()
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def obey_again() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        request.signal = number
        obey_again()

    for number in former:
        signal.signal(number, note)
    try:
        yield request
    finally:
        obey_again()

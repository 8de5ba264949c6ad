"""The first signal asks, the second one ends."""

import os
import signal
import subprocess
import sys

import pytest

from smallgpt.interfaces.signals import stop_signals

BOTH = [signal.SIGINT, signal.SIGTERM]
ALL = [*BOTH, signal.SIGHUP]


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_is_noted_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in ALL]
    with stop_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.exit_code == 128 + number
    assert [signal.getsignal(each) for each in ALL] == before


@pytest.mark.parametrize("number", ALL)
def test_what_is_ignored_from_the_start_stays_so_as_nohup_asks(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), number)
            assert not stop()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


TWICE = """
import os, signal
from smallgpt.interfaces.signals import stop_signals
with stop_signals():
    os.kill(os.getpid(), signal.SIGINT)
    print("asked", flush=True)
    os.kill(os.getpid(), signal.{second})
    print("still here", flush=True)
"""


@pytest.mark.parametrize("second", BOTH)
def test_the_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWICE.format(second=second.name)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "asked\n"
    assert done.returncode == -second


def test_in_a_launch_the_launcher_alone_ends_it_at_once() -> None:
    with stop_signals(launched=True) as stop:
        for number in BOTH:  # as a batch system and the launcher that it signals too
            os.kill(os.getpid(), number)
        assert stop()


def test_a_process_whose_launcher_is_gone_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_signals() as alone, stop_signals(launched=True) as launched:
        assert not launched()
        monkeypatch.setattr("os.getppid", lambda: 1)
        assert not alone()
        assert launched()
        assert launched.exit_code == 128 + signal.SIGHUP

"""Trying again: how often, how long, and what is never tried twice."""

from collections.abc import Callable

import pytest

from smallgpt.infrastructure.retrying import ATTEMPTS, LONGEST_WAIT, TransientError, busy, reason_of, retried


class Failing:
    """A step that fails some times; and the waits in between."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.waits, self.told = list(errors), list[float](), list[str]()

    def step(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def run(self) -> str:
        return retried(
            self.step, "the hub", lambda _done, _of, what, _details="": self.told.append(what), self.waits.append
        )


def test_waits_grow_and_end() -> None:
    failing = Failing(*[TransientError("503")] * 9)
    with pytest.raises(TransientError, match="503"):
        failing.run()
    assert len(failing.errors) == 9 - ATTEMPTS
    assert len(failing.waits) == ATTEMPTS - 1
    for wait, usual in zip(failing.waits, (1, 2, 4, 8), strict=True):
        assert 0.75 * usual <= wait <= 1.25 * usual


def test_what_the_server_asks_for_is_waited_and_told() -> None:
    failing = Failing(busy(429, "7"), busy(503, None))
    assert failing.run() == "done"
    assert failing.waits[0] == 7
    assert failing.told[0] == "the hub asks to wait 7 s (429), attempt 2 of 5"
    assert failing.told[1].startswith("the hub fails (503), waiting ")


@pytest.mark.parametrize(
    "make", [lambda: busy(429, str(int(LONGEST_WAIT) + 1)), lambda: ValueError("a bug")], ids=["too long", "another"]
)
def test_what_is_not_tried_again(make: Callable[[], Exception]) -> None:
    failing = Failing(make(), TransientError("never seen"))
    with pytest.raises((TransientError, ValueError), match=r"429, try again in 61 s|a bug"):
        failing.run()
    assert failing.waits == []


@pytest.mark.parametrize("header", [None, "", "Wed, 21 Oct 2026 07:28:00 GMT", "-3"])
def test_a_retry_after_without_seconds_is_as_good_as_none(header: str | None) -> None:
    assert busy(429, header).wait is None


def test_the_first_cause_gives_the_reason() -> None:
    error = RuntimeError("the request failed")
    error.__cause__ = OSError("no such host\nand more")
    assert reason_of(error) == "no such host"
    assert reason_of(TimeoutError()) == "TimeoutError"


def test_a_secret_is_taken_out_before_the_words_are_cut() -> None:
    error = OSError("x" * 70 + " https://me:hunter2hunter2hunter2@host/file")
    assert "hunter2" not in reason_of(error)
    assert len(reason_of(error)) <= 100

"""What is told of the speed of tokenization, by a clock that is set by hand."""

import time
from pathlib import Path

import pytest

from smallgpt.infrastructure.corpora.text_parts import TextPart
from smallgpt.infrastructure.tokenizing.encoding import PartJob
from smallgpt.infrastructure.tokenizing.speed import Meter

MB = 1_000_000


class Told:
    """A meter of two parts, of 10 and 2 MB, and the last that it told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        sizes = enumerate((10 * MB, 2 * MB))
        self.jobs = [PartJob(n, TextPart(Path(f"{n}.txt"), "", None, size, stamp=0), "train") for n, size in sizes]
        self.meter = Meter(self.jobs, 0, self._progress)

    def _progress(self, done: int, total: int | None, what: str, details: str = "") -> None:
        assert what == "tokenizing"
        self.done, self.total, self.words = done, total, details

    def after(self, seconds: float, job: int, megabytes: int) -> str:
        self.now += seconds
        self.meter.tell(self.jobs[job], megabytes * MB, megabytes * MB // 4)
        return self.words


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


def test_work_is_told_from_its_beginning(told: Told) -> None:
    assert (told.done, told.total, told.words) == (0, 12 * MB, "0.0 MB of text")


def test_the_time_before_the_first_text_is_in_no_speed(told: Told) -> None:
    """Workers that need a minute to begin, and then take 1 MB/s."""
    assert told.after(60, 0, 1) == "1.0 MB of text"
    assert told.after(0.1, 1, 1) == "2.0 MB of text", "too soon to judge: the second worker began as late"
    assert told.after(2.9, 0, 2) == "4.0 MB of text, 1.0 MB/s, 0.25 M tokens/s, 0:08 left"
    assert told.after(4, 0, 4) == "8.0 MB of text, 1.0 MB/s, 0.25 M tokens/s, 0:04 left"


def test_the_last_line_says_that_all_is_done(told: Told) -> None:
    told.after(5, 0, 1)
    told.after(9, 0, 9)
    told.meter.finish(told.jobs[0])
    told.after(0, 1, 2)
    told.meter.finish(told.jobs[1])
    assert told.done == told.total
    assert told.words == "12.0 MB of text, 1.2 MB/s, 0.31 M tokens/s, 0:00 left"


def test_compressed_parts_are_judged_by_those_before(told: Told) -> None:
    """Four bytes of text for one on the disk, at 4 MB of text a second."""
    told.after(5, 0, 4)
    told.after(9, 0, 36)
    told.meter.finish(told.jobs[0])
    assert told.words == "40.0 MB of text, 4.0 MB/s, 1.00 M tokens/s, 0:02 left"
    assert told.after(1, 1, 4) == "44.0 MB of text, 4.0 MB/s, 1.00 M tokens/s, 0:01 left"


def test_nothing_is_told_where_nothing_is_left_to_do() -> None:
    Meter([], 5, lambda *_: pytest.fail("there is nothing to do"))

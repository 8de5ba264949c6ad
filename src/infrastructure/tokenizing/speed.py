"""How fast tokenization goes, and how long it will take."""

import time
from collections import defaultdict
from collections.abc import Iterable

from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.tokenizing.encoding import PartJob

SECONDS_TO_JUDGE = 1.0
"""Measured for so long, a speed is worth telling."""


class Meter:
    """Adds up what was done, and tells it as bytes of the corpus with text and tokens a second.

    Speeds are of what follows the first text: before it, processes start, and open or make what they read.
    """

    def __init__(self, part_jobs: Iterable[PartJob], done_before: int, progress: Progress | None) -> None:
        self.left = {part_job.number: part_job.part.size for part_job in part_jobs}
        self.done = self.done_before = done_before
        self.total = done_before + sum(self.left.values())
        self.progress = progress
        self.text_bytes = self.tokens = self.finished_text = 0
        self.running: dict[int, int] = defaultdict(int)
        """Text bytes so far, by part."""
        self.first = self._reading()
        """As it was when the first text was done."""
        if self.left:
            self._show()

    def tell(self, part_job: PartJob, text_bytes: int, tokens: int) -> None:
        """That much more of a part is done."""
        self.text_bytes += text_bytes
        self.tokens += tokens
        self.running[part_job.number] += text_bytes
        if self.text_bytes == text_bytes:
            self.first = self._reading()
        self._show()

    def finish(self, part_job: PartJob) -> None:
        """A part is done."""
        self.done += self.left.pop(part_job.number)
        self.finished_text += self.running.pop(part_job.number, 0)
        self._show()

    def _show(self) -> None:
        if self.progress is None:
            return
        done = self.done + sum(min(self.left[number], self._read(text)) for number, text in self.running.items())
        self.progress(
            int(done), self.total, "tokenizing", f"{self.text_bytes / 1e6:,.1f} MB of text{self._speed(done)}"
        )

    def _speed(self, done: float) -> str:
        seconds, text_bytes, tokens = (now - first for now, first in zip(self._reading(), self.first, strict=True))
        if seconds < SECONDS_TO_JUDGE or not text_bytes:
            return ""
        text_left = self.text_bytes * (self.total - done) / max(1, done - self.done_before)
        remaining = text_left * seconds / text_bytes
        return (
            f", {text_bytes / 1e6 / seconds:.1f} MB/s, {tokens / 1e6 / seconds:.2f} M tokens/s, "
            f"{int(remaining // 60)}:{int(remaining % 60):02} left"
        )

    def _reading(self) -> tuple[float, int, int]:
        """The time, and the text bytes and tokens that are done."""
        return time.monotonic(), self.text_bytes, self.tokens

    def _read(self, text_bytes: int) -> float:
        """How many of a part's bytes that text took, which may be compressed, judged by the parts before."""
        finished = self.done - self.done_before
        return text_bytes * (finished / self.finished_text if self.finished_text else 1.0)

"""How fast tokenization goes, and how long it will take."""

import time
from collections import defaultdict
from collections.abc import Iterable

from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.tokenizing.encoding import PartJob


class Meter:
    """Adds up what was done, and tells it as bytes of the corpus with text and tokens a second."""

    def __init__(self, part_jobs: Iterable[PartJob], done_before: int, progress: Progress | None) -> None:
        self.left = {part_job.number: part_job.part.size for part_job in part_jobs}
        self.done = self.done_before = done_before
        self.total = done_before + sum(self.left.values())
        self.progress = progress
        self.began = time.monotonic()
        self.text_bytes = self.tokens = self.finished_text = 0
        self.running: dict[int, int] = defaultdict(int)
        """Text bytes so far, by part."""

    def tell(self, part_job: PartJob, text_bytes: int, tokens: int) -> None:
        """That much more of a part is done."""
        self.text_bytes += text_bytes
        self.tokens += tokens
        self.running[part_job.number] += text_bytes
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
        seconds = max(1e-9, time.monotonic() - self.began)
        remaining = seconds * (self.total - done) / max(1, done - self.done_before)
        words = (
            f"{self.text_bytes / 1e6:,.1f} MB of text, {self.text_bytes / 1e6 / seconds:.1f} MB/s, "
            f"{self.tokens / 1e6 / seconds:.2f} M tokens/s, {int(remaining // 60)}:{int(remaining % 60):02} left"
        )
        self.progress(int(done), self.total, "tokenizing", words)

    def _read(self, text_bytes: int) -> float:
        """How many of a part's bytes that text took, which may be compressed, judged by the parts before."""
        finished = self.done - self.done_before
        return text_bytes * (finished / self.finished_text if self.finished_text else 1.0)

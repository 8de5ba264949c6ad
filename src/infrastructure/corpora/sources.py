"""Corpora that are at hand: the demo's stories, and local files."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smallgpt.infrastructure.corpora import demo
from smallgpt.infrastructure.corpora.parts import Corpus
from smallgpt.infrastructure.corpora.planning import DEFAULTS, ReadOptions, plan_files

NAMED = 3


def demo_corpus() -> Corpus:
    """The stories that the demo's grammar tells: the same ones everywhere."""
    return Corpus("demo", (DemoStories("train"),), (DemoStories("validation"),))


def text_corpus(paths: Sequence[Path], options: ReadOptions = DEFAULTS) -> Corpus:
    """Local files and folders. Errors as in plan_files."""
    more = f" and {len(paths) - NAMED:,} more" if len(paths) > NAMED else ""
    return Corpus(", ".join(path.name for path in paths[:NAMED]) + more, plan_files(paths, options))


@dataclass(frozen=True)
class DemoStories:
    """One split of the demo's stories: a Part."""

    split: Literal["train", "validation"]

    @property
    def name(self) -> str:
        """See Part."""
        return f"demo ({self.split})"

    @property
    def size(self) -> int:
        """See Part."""
        return sum(map(len, self._told()))

    def documents(self) -> Iterator[str]:
        """See Part."""
        yield from self._told()

    def _told(self) -> list[str]:
        return _both()[("train", "validation").index(self.split)]


@functools.cache
def _both() -> tuple[list[str], list[str]]:
    return demo.split()

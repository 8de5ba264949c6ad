"""Corpora of more parts than a process may open files."""

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.corpora import planning
from smallgpt.infrastructure.corpora.sources import text_corpus
from smallgpt.infrastructure.tokenizing import encoding
from smallgpt.infrastructure.tokenizing.choosing import TokenizerChoice
from smallgpt.infrastructure.tokenizing.making import Options, make_data_folder

FILES = 64
STORIES = [f"Story {i % 900}. Once upon a time the cat number {i % 900} sat on a mat, and slept." for i in range(1000)]


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(STORIES))
    return path


@pytest.fixture
def few_files() -> Iterator[int]:
    """How many more files this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(number) for number in os.listdir("/proc/self/fd")}
    free = [number for number in range(soft) if number not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[FILES], hard))  # the limit is on the numbers of files
    yield FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_copies_are_found_in_more_parts_than_files_may_be_open(
    kind: Literal["exact", "near"],
    stories: Path,
    few_files: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = Options(TokenizerChoice("bytes"), deduplicate=kind, workers=1)
    expected = make_data_folder(text_corpus([stories]), tmp_path / "one", options)
    monkeypatch.setattr(planning, "PART_BYTES", 350)
    corpus = text_corpus([stories])
    assert len(corpus.train) > 2 * few_files
    assert make_data_folder(corpus, tmp_path / "many", options) == expected
    assert expected.left_out is not None
    assert expected.left_out.train >= 90


def test_too_many_open_files_have_their_own_remedy(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(encoding._Stream, "flush", refused)
    with pytest.raises(DataError, match=r"cannot be written \(Too many open files\); raise the limit with ulimit -n$"):
        make_data_folder(text_corpus([stories]), tmp_path / "out", Options(TokenizerChoice("bytes"), workers=1))

"""Data folders whose files were changed after they were made, where their manifests do not show it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Refused = Callable[..., None]
Run = Callable[..., Any]

TRAIN = ["train", "--data", "data", "--out", "runs/new", "--training.max-steps=3"]


@pytest.mark.parametrize("windows", ["anywhere", "documents", "packed"])
def test_no_step_is_trained_on_an_id_that_the_vocabulary_has_not(
    here: Path, run: Run, tiny_flags: list[str], windows: str
) -> None:
    path = Path("data/train.bin")
    ids = np.fromfile(path, dtype="<u2")
    ids[ids != 256] = 60_000
    ids.tofile(path)
    ended = run(*TRAIN, f"--data.windows={windows}", *tiny_flags)
    assert ended.code == 3
    for words in (
        f"{path}: token id 60000 at position ",
        "vocabulary ends at 256",
        "prepare verify data",
        "prepare the data",
    ):
        assert words in ended.err
    assert "Traceback" not in ended.err
    assert '"event": "train"' not in Path("runs/new/metrics.jsonl").read_text()


@pytest.mark.parametrize("windows", ["documents", "packed"])
def test_document_starts_that_are_damaged(here: Path, refused: Refused, windows: str) -> None:
    path = Path("data/train.starts.npy")
    starts = np.load(path)
    starts[3] = starts[2]
    np.save(path, starts)
    refused([*TRAIN, f"--data.windows={windows}"], 3, "document 2 starts at", "smallgpt prepare verify")
    path.unlink()
    refused([*TRAIN, f"--data.windows={windows}"], 3, "train.starts.npy: cannot be read", "prepare the data again")

"""A run of moments, by one process and by several, and what it wrote."""

from pathlib import Path
from typing import Any

import pytest

from smallgpt.infrastructure.run_folder import RunFolder

TINY = [
    "--model.n-layer=1",
    "--model.n-head=2",
    "--model.n-embd=16",
    "--model.block-size=32",
    "--model.dropout=0",
    "--training.batch-size=4",
    "--training.precision=fp32",
    "--training.threads=1",
    "--schedule.warmup=2",
    "--evaluation.sample-every=0",
    "--evaluation.sample-tokens=8",
    "--evaluation.every=4",
    "--evaluation.max-tokens=2000",
    "--checkpoint.every=4",
]
LENGTHS = {"alone": 12, "alone-40": 40}
"""Steps of the runs by one process."""


def events(made: Path, run: str, kind: str = "train") -> list[dict[str, Any]]:
    """What the run wrote of one kind."""
    return [event for event in RunFolder(made / "runs" / run).metrics() if event["event"] == kind]


def losses(made: Path, run: str) -> dict[int, float]:
    """By step; a step that was written twice is an error."""
    found = [(event["step"], event["loss"]) for event in events(made, run)]
    assert len(dict(found)) == len(found)
    return dict(found)


def assert_same_losses(made: Path, run: str, alone: str = "alone") -> None:
    """As those of one process that nobody stopped, step by step, up to the order of additions."""
    assert losses(made, run) == pytest.approx(losses(made, alone), rel=1e-5)
    assert len(losses(made, run)) == LENGTHS[alone]

"""The two kinds of repositories on the hub, and how each is spoken of."""

from dataclasses import dataclass
from typing import Literal

from smallgpt.domain.errors import CheckpointError, DataError, SmallGPTError


@dataclass(frozen=True)
class Kind:
    """Of a repository."""

    word: Literal["dataset", "model"]
    """The hub's word for it, and people's."""
    pages: str
    """What stands before its name in the address of its page."""
    asked_first: tuple[str, ...]
    """The files that tell which others are wanted."""
    elsewhere: str
    """What to do without the hub."""
    error: type[SmallGPTError]
    """What is raised when it cannot be had."""


DATASET = Kind(
    word="dataset",
    pages="datasets/",
    asked_first=("README.md", ".huggingface.yaml"),
    elsewhere="without it use `smallgpt prepare text FILES` or `smallgpt prepare demo`",
    error=DataError,
)
MODEL = Kind(
    word="model",
    pages="",
    asked_first=("config.json",),
    elsewhere="without it give a folder of this machine",
    error=CheckpointError,
)

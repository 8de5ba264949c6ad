"""Writing so that a reader, or a crash, sees the old file or the new one and nothing between."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallgpt.domain.errors import ConfigError


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file as a whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file as a whole."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def check_replaceable(target: Path) -> None:
    """Raises ConfigError for the current folder and those around it: whoever is in there would stand in a removed one."""
    if target.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise ConfigError(f"{target} is the current folder or holds it, so it is not replaced; choose another --out")


@contextmanager
def folder_written_whole(target: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a folder beside `target` to fill; at the end it is synced and takes target's place, replacing what was there.

    On an exception, such as one of `check`, which is called last, nothing is left and target is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        take_place(draft, target, target.with_name(f".{target.name}.{os.getpid()}.old.tmp"), check)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def take_place(draft: Path, target: Path, aside: Path, check: Callable[[], None] = lambda: None) -> None:
    """Force a folder of files to the disk and put it where target is; what was there is moved aside and removed.

    On an exception target is as it was.
    """
    for path in draft.iterdir():
        sync(path)
    sync(draft)
    check()
    if target.exists():
        target.rename(aside)
    try:
        draft.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)

"""How far a long preparation is: a bar with the time left on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from smallgpt.infrastructure.progress import Progress as Tell

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def shown(console: Console) -> "Iterator[Tell]":
    """A function to be told (done, total or None, what) as work goes on; the bar is gone afterwards."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield _plain(console)
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeRemainingColumn()
    tasks: dict[str, TaskID] = {}
    bars = Progress(*columns, console=console, transient=True)

    def tell(done: int, total: int | None, what: str, details: str = "") -> None:
        if not tasks:  # not before: a terminal is left alone where nothing takes long
            bars.start()
        if what not in tasks:
            for former in tasks.values():
                bars.update(former, visible=False)
            tasks[what] = bars.add_task(what, total=total, count="")
        bars.update(tasks[what], completed=done, total=total, count=details or _count(done, total))

    try:
        yield tell
    finally:
        if tasks:
            bars.stop()


def model_fetched(model: Path | str) -> Path:
    """A model's folder on this machine; from a URL it is fetched, which shows on stderr. Raises CheckpointError."""
    from smallgpt.interfaces.places import model_at_hand

    with shown(Console(stderr=True)) as progress:
        return model_at_hand(model, progress)


def _plain(console: Console) -> "Tell":
    last_what, last_done, last_time = "", 0, 0.0

    def tell(done: int, total: int | None, what: str, details: str = "") -> None:
        nonlocal last_what, last_done, last_time
        now = time.monotonic()
        ended = done == total and done != last_done  # the last line says so: another one may not come
        if what != last_what or ended or now - last_time >= SECONDS_BETWEEN_LINES:
            console.print(
                f"{what} {details or _count(done, total)}".rstrip(), highlight=False, markup=False, soft_wrap=True
            )
            last_what, last_done, last_time = what, done, now

    return tell


def _count(done: int, total: int | None) -> str:
    if total is not None:
        return f"{done:,} of {total:,}"
    return f"{done:,}" if done else ""

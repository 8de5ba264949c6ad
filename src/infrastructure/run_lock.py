"""Who may write a run: one process at a time and, of a launch whose hosts lost each other, the one that came last.

The file RUN/lock is held by flock: it ends with the process, and on shared storage that has it (NFS 4, Lustre mounted with
flock) it holds between hosts. Its text says who holds it; of a launch, also by which mark, and for which launch. When a
launch goes on without a host that was cut off, that host's process may still hold the run. The new one then writes its own
mark over that one's, and waits: the former compares the mark before it writes anything, gives up, and the lock is free.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Self
from uuid import uuid4

from smallgpt.domain.errors import CheckpointError

POLL = 0.1  # seconds


class RunLock:
    """The right to write a run, from its making until it is closed or this process ends, however it ends."""

    def __init__(self, folder: Path, launch: str | None = None, patience: float = 0.0) -> None:
        """`launch` is the name of the launch, of several rounds of processes, that this one belongs to.

        Of a holder that is of an earlier round of the same launch the run is taken over; it has `patience` seconds to
        notice. Raises CheckpointError when another process holds the run.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.launch = folder, launch
        self.holder = _this_process()
        self.mark = uuid4().hex
        self.file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take(patience)
        except CheckpointError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the run."""
        os.close(self.file)

    def check(self) -> None:
        """Raises CheckpointError when a later round of this launch has taken the run over: then nothing may be written."""
        if self.launch is None:  # only a round of the same launch takes over
            return
        holder, mark, _ = holder_of(self.folder)
        if mark != self.mark:
            raise CheckpointError(
                f"{self.folder} was taken over by {holder}: this launch went on there.\n"
                "This process was cut off from the others, and leaves the run to them."
            )

    def _take(self, patience: float) -> None:
        if not self._is_free():
            holder, _, launch = holder_of(self.folder)
            if self.launch is None or launch != self.launch:
                raise CheckpointError(
                    f"{self.folder} is in use by {holder}. Wait for it, or train into another folder with --out."
                )
            self._write_mark()
            self._wait(holder, patience)
            self.check()  # a still later round may have come meanwhile
        self._write_mark()

    def _wait(self, holder: str, patience: float) -> None:
        end = time.monotonic() + patience
        while not self._is_free():
            if time.monotonic() > end:
                raise CheckpointError(
                    f"{self.folder} is still in use by {holder}, of an earlier round of this launch, after "
                    f"{patience:g} s.\nEnd it, then `smallgpt train --resume {self.folder}`."
                )
            time.sleep(POLL)

    def _is_free(self) -> bool:
        """And held, if so."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise CheckpointError(
                f"{self.folder / 'lock'} cannot be locked: {error.strerror}.\n"
                "Two processes could write the run at once: mount its storage with flock, or train elsewhere with --out."
            ) from None
        return True

    def _write_mark(self) -> None:
        """In one write, and cut to its length after it: a reader sees the old lines or the new ones."""
        text = _text(self.holder, self.mark, self.launch)
        os.pwrite(self.file, text, 0)
        os.ftruncate(self.file, len(text))
        os.fsync(self.file)


def leave_to(folder: Path, launch: str | None) -> None:
    """Write down which launch a run folder is made for that nobody else sees yet, as if this process had held it."""
    (folder / "lock").write_bytes(_text(_this_process(), uuid4().hex, launch))


def _this_process() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"


def _text(holder: str, mark: str, launch: str | None) -> bytes:
    lines = [holder] if launch is None else [holder, mark, launch]
    return "".join(f"{line}\n" for line in lines).encode()


def holder_of(folder: Path) -> tuple[str, str, str]:
    """Who holds or last held a run, in words; its mark; the launch that it belongs to, "" where it belonged to none."""
    try:
        lines = (folder / "lock").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    holder, mark, launch = (*lines, "", "", "")[:3]
    return holder or "another process", mark, launch

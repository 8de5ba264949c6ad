"""The command in a terminal of its own: what is typed, what is shown, and keys that send signals."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 60.0
CTRL_C, CTRL_D = "\x03", "\x04"
# In the new process: the terminal becomes the one whose Ctrl-C it hears. (What Popen offers for it warns about threads.)
TAKE_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "smallgpt", *sys.argv[1:]])
"""


class Terminal:
    """A running command and its screen; a context that ends it."""

    def __init__(self, *words: str, term: str, cwd: Path) -> None:
        self.screen, self.seen = "", 0
        self.own, theirs = pty.openpty()
        environment = {**os.environ, "TERM": term, "OMP_NUM_THREADS": "1", "INPUTRC": "/dev/null"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *words],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment,
        )  # fmt: skip
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.own)

    def type(self, keys: str) -> None:
        """Press keys; what they show counts as new."""
        self.seen = len(self.screen)
        os.write(self.own, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C once the program sleeps until the next key.

        Between what it shows and its select(), readline is deaf: CPython looks at a signal that comes there when the line ends.
        """
        deadline = time.monotonic() + PATIENCE
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2][0] != "S":
            assert time.monotonic() < deadline, "it waits for no key"
            time.sleep(0.005)
        self.type(CTRL_C)

    def wait_for(self, words: str) -> str:
        """Everything shown since the last keys, once the words are among it."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.screen[self.seen :]:
            if not self._read(deadline):
                raise AssertionError(f"{words!r} did not come: {self.screen!r}")
        return self.screen[self.seen :]

    def wait_for_more(self, characters: int) -> None:
        """Wait until so many characters more are shown."""
        wanted, deadline = len(self.screen) + characters, time.monotonic() + PATIENCE
        while len(self.screen) < wanted:
            assert self._read(deadline), self.screen

    def end(self) -> int:
        """The exit code; the rest of the screen is read."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE)

    def edits_lines_itself(self) -> bool:
        """Has the program taken the line editing over from the kernel?"""
        return not termios.tcgetattr(self.own)[3] & termios.ICANON

    def _read(self, deadline: float) -> bool:
        """Read what is there, waiting for it; False at the end."""
        ready, _, _ = select.select([self.own], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self.own, 65536)
        except OSError:  # Linux's way of saying that nobody is at the other end any more
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)

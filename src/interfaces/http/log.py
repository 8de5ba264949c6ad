"""Lines on stderr while the server runs."""

import sys
from contextlib import suppress


def log(words: str) -> None:
    """A line. A terminal that is gone, or a full disk, loses the line, and must not end what was doing its work."""
    with suppress(OSError, ValueError):  # ValueError: stderr is closed
        print(words, file=sys.stderr, flush=True)

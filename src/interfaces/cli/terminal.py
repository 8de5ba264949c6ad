"""What a terminal can do, and text that does nothing to it."""

import os
import sys
from typing import TextIO

BOLD, PLAIN = "\033[1m", "\033[0m"
# A model of bytes can write any of them, such as those that clear a screen; tab and line feed are text.
CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def is_terminal(stream: TextIO | None) -> bool:
    """Is it one? A process may have been started without the stream."""
    return stream is not None and stream.isatty()


def is_capable() -> bool:
    """Do stdin and stdout belong to a terminal that knows more than lines?"""
    return is_terminal(sys.stdin) and is_terminal(sys.stdout) and os.environ.get("TERM", "dumb") != "dumb"


def harmless(text: str) -> str:
    """The text with control characters replaced where stdout is a terminal; a file or pipe gets what the model wrote."""
    return text.translate(CONTROLS) if is_terminal(sys.stdout) else text

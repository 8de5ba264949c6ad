"""Every way a command can fail, as one or two lines on stderr and an exit code."""

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from smallgpt.domain.errors import ConfigError, DataError, HardwareError, SmallGPTError, is_out_of_memory
from smallgpt.interfaces.signals import handling

if TYPE_CHECKING:
    from cyclopts import CycloptsError

Lines = list[str]

REMEDIES = {
    errno.ENOSPC: "free some space, or give a folder on another disk",
    errno.EDQUOT: "free some space, or give a folder on another disk",
    errno.EACCES: "change its permissions, or give another path",
    errno.EPERM: "change its permissions, or give another path",
    errno.EROFS: "the file system is read-only; give a path on another one",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.EMFILE: "raise the limit with ulimit -n",
}


class Terminated(BaseException):
    """SIGTERM arrived, or the terminal is gone: unwinds like Ctrl-C, so that half-written folders are removed."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def guard(command: Callable[[], object], *, debug: bool) -> int:
    """Run a command; what it raises becomes words on stderr, what it returns (an int, or nothing) the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # stories have characters that an ASCII terminal has not
    try:
        with _terminable():
            result = command()
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        # The reader (`| head`) has enough. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # rich, which prints the help, turns one into the other
            return 0
        raise
    except KeyboardInterrupt as stopped:
        _say(["interrupted", *_notes(stopped)])
        return 130
    except Terminated as stopped:
        _say(["hung up" if stopped.number == signal.SIGHUP else "terminated", *_notes(stopped)])
        return 128 + stopped.number
    except Exception as error:
        if debug:
            traceback.print_exc()
        lines, code = describe(error)
        _say([*lines, *_notes(error)])
        return code


def _notes(error: BaseException) -> Lines:
    """What was added to an error on its way: what is kept, say."""
    return getattr(error, "__notes__", [])


def describe(error: Exception) -> tuple[Lines, int]:
    """The words for an error, and the exit code."""
    if isinstance(error, SmallGPTError):
        return str(error).splitlines(), error.exit_code
    if _is_from("cyclopts", error):
        return _usage(error), ConfigError.exit_code  # type: ignore[arg-type]  # imported only when it was raised
    if _is_from("pydantic_core", error):
        from smallgpt.interfaces.cli.settings import mistakes

        return mistakes(error), ConfigError.exit_code  # type: ignore[arg-type]
    if isinstance(error, OSError):
        return _system(error), DataError.exit_code
    words = str(error).strip().split("\n")[0]
    if "No space left on device" in words:  # libraries' own exceptions: safetensors, pyarrow
        return [words, REMEDIES[errno.ENOSPC]], DataError.exit_code
    if is_out_of_memory(error):
        return [f"out of memory: {words}", "try a smaller --training.micro-batch or model"], HardwareError.exit_code
    return [f"internal error: {type(error).__name__}: {words}", "run again with --debug for the traceback"], 1


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about a wrong word: "; did you mean ...?", or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _is_from(package: str, error: Exception) -> bool:
    return any(kind.__module__.partition(".")[0] == package for kind in type(error).__mro__)


def _usage(error: "CycloptsError") -> Lines:
    """A mistake in the command's words, with where to read on."""
    from cyclopts import UnusedCliTokensError

    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        words = f"unexpected: {' '.join(error.unused_tokens)}"
    else:
        words = " ".join(str(error).split())
    command = " ".join(["smallgpt", *(error.command_chain or [])])
    return [words, f"see {command} --help"]


def _system(error: OSError) -> Lines:
    path = f"{error.filename}: " if error.filename is not None else ""
    remedy = REMEDIES.get(error.errno or 0)
    words = f"{path}{error.strerror or error}"
    return [words] if remedy is None else [words, remedy]


def _say(lines: Lines) -> None:
    with suppress(OSError, ValueError):  # nobody may be listening; the exit code still tells
        for number, line in enumerate(lines):
            print(line if number else f"smallgpt: {line}", file=sys.stderr)


@contextmanager
def _terminable() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    with handling(stop, signal.SIGTERM, signal.SIGHUP):
        yield

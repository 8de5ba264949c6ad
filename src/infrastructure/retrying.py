"""Trying again what a network or a busy server refused: a few times, with longer and longer waits, and never for ever."""

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from smallgpt.domain.places import without_secrets

if TYPE_CHECKING:
    from smallgpt.infrastructure.progress import Progress

ATTEMPTS = 5
FIRST_WAIT = 1.0
"""Seconds before the second attempt; each wait after it is twice as long, give or take a quarter."""
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for more is not waited for."""
BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP status codes of a server that may answer later."""

Result = TypeVar("Result")


class TransientError(Exception):
    """What the next attempt may not meet. wait: seconds that the server asked for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def retried(
    step: Callable[[], Result],
    who: str,
    progress: "Progress | None" = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Result:
    """What step returns, tried up to ATTEMPTS times. Raises the last TransientError; other errors go through at once."""
    for attempt in range(2, ATTEMPTS + 1):
        try:
            return step()
        except TransientError as error:
            asked = error.wait is not None
            wait = (
                error.wait if error.wait is not None else FIRST_WAIT * 2 ** (attempt - 2) * random.uniform(0.75, 1.25)
            )
            if wait > LONGEST_WAIT:
                raise
            if progress:
                what = f"asks to wait {wait:.0f} s ({error})" if asked else f"fails ({error}), waiting {wait:.0f} s"
                progress(0, None, f"{who} {what}, attempt {attempt} of {ATTEMPTS}")
            sleep(wait)
    return step()


def busy(status: int, retry_after: str | None) -> TransientError:
    """The TransientError of a status in BUSY, with the Retry-After header where it gives seconds."""
    asked = float(retry_after) if retry_after and retry_after.strip().isdigit() else None
    reason = str(status)
    if asked is not None and asked > LONGEST_WAIT:
        reason = f"{status}, try again in {asked:.0f} s"
    return TransientError(reason, asked)


def innermost(error: BaseException) -> BaseException:
    """The first cause of an error, which says most where libraries wrap each other's."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def reason_of(error: BaseException) -> str:
    """A few words for an error, without the secrets of a URL in them."""
    first = innermost(error)
    line = (str(first).strip().splitlines() or [type(first).__name__])[0]
    return without_secrets(line)[:100]  # in this order: half a password is no longer known as one


def is_html(content: bytes) -> bool:
    """Is it a web page: a proxy's or a sign-in page that came in place of a file?"""
    return content[:64].lstrip().lower().startswith((b"<!doctype html", b"<html"))

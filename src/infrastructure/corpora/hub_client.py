"""The hub's own client, made to fail at once and clearly: waiting and trying again is `retrying`'s, with one bound.

Left alone, huggingface_hub obeys a Retry-After of a day, lists files without any time-out, and reads for ever from a
server that sends a byte a second.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

from smallgpt.infrastructure.retrying import BUSY, TransientError, busy, reason_of

TIME_OUT = 10.0
"""Seconds to connect, and between bytes, where the client sets none; HF_HUB_DOWNLOAD_TIMEOUT sets a file's."""
SLOWEST = 1000.0
"""Bytes a second; less is given up after PATIENCE seconds."""
PATIENCE = 30.0


class StoppedError(Exception):
    """Another file failed, or the user ended the command."""


@contextmanager
def strict_client(stop: Event | None = None) -> Iterator[None]:
    """Within, every request of huggingface_hub raises TransientError for a busy server, a failed connection and a trickle.

    stop, once set, ends the downloads of other threads with StoppedError. The client says nothing of its own.
    """
    from huggingface_hub import get_session

    session: Any = get_session()
    usual, stop = session.send, stop or Event()

    def send(request: Any, **options: Any) -> Any:
        if stop.is_set():
            raise StoppedError
        timeout = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {key: timeout.get(key) or TIME_OUT for key in _TIME_OUTS}
        try:
            response = usual(request, **options)
        except (OSError, TransientError):  # offline mode is an OSError
            raise
        except Exception as error:  # of the HTTP library, which is not the same in every version
            if "range" in request.headers:
                raise  # the client tries this again itself, without losing what came already
            raise TransientError(reason_of(error)) from error
        if response.status_code in BUSY:
            response.close()
            raise busy(response.status_code, response.headers.get("retry-after"))
        if request.method == "GET":
            response.iter_raw = _paced(response.iter_raw, stop)
        return response

    vars(session)["send"] = send
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        vars(session).pop("send", None)


_TIME_OUTS = ("connect", "read", "write", "pool")


def _paced(iter_raw: Any, stop: Event) -> Any:
    """Response.iter_raw that gives up on a server that only trickles."""

    def read(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        began, received = time.monotonic(), 0
        for chunk in iter_raw(*args, **kwargs):
            if stop.is_set():
                raise StoppedError
            received += len(chunk)
            seconds = time.monotonic() - began
            if seconds > PATIENCE and received < SLOWEST * seconds:
                raise TransientError(f"only {received / seconds:.0f} bytes a second")
            yield chunk

    return read

"""uvicorn, with an end in two steps: refuse what comes, then finish what runs."""

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from uvicorn import Config, Server

from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces.http.connections import Connection
from smallgpt.interfaces.http.guard import App
from smallgpt.interfaces.http.limits import CONNECTIONS, Limits
from smallgpt.interfaces.http.worker import Worker
from smallgpt.interfaces.signals import handling

CLOSE_SECONDS = 5
"""For answers that are written already to reach their clients."""


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to that address; port 0 takes any free one. Raises ConfigError."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port is {port}; it must be between 0, for any free one, and 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise ConfigError(f"host {host!r} is not known; give an address of this machine, such as 127.0.0.1") from None
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(_refusal(error, host, port)) from None
    return listener


def _refusal(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} of {host} is in use\nGive another one, or --port 0 for any that is free."
        case errno.EACCES:
            return f"port {port} may not be used by this user\nGive one above 1023: --port 8000."
        case _:
            return f"cannot listen on {host}, port {port}: {error.strerror}\nGive an address of this machine."


def address_of(listener: socket.socket) -> str:
    """http://HOST:PORT"""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Running(Server):
    """Serves an application until it is told to stop."""

    def __init__(self, app: App, worker: Worker, limits: Limits, ready: Callable[[], None]) -> None:
        """`ready` is called once connections are taken."""
        super().__init__(
            Config(
                app,
                http=partial(Connection, limits.header_seconds),  # type: ignore[arg-type]  # any callable will do
                ws="none",
                log_config=None,
                log_level="critical",  # what goes wrong in a request, the guard says in a line
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )
        self._worker, self._ready = worker, ready
        self._asked = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so when it is done."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    def stop(self) -> None:
        """What the first signal does. May be called from a signal's handler or another thread: it only notes."""
        self._asked = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A closed terminal's too, unless it is ignored, as nohup asks, or a thread serves, which gets no signals."""
        hang_up = (signal.SIGHUP,) if threading.current_thread() is threading.main_thread() else ()
        with super().capture_signals(), handling(self.handle_exit, *hang_up):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks, and is raised again at the end, for the exit code; the second one ends the process."""
        if self._asked:
            os._exit(128 + sig)  # not by an exception: every open connection would print its traceback
        self._captured_signals.append(sig)
        self.stop()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: has it been asked to stop, and has everything ended? Or can nothing be written any more?"""
        if self._worker.death is not None:
            self.should_exit = True
        elif self._asked and not self._worker.is_stopping:
            self._worker.stop()
        elif self._asked and self._worker.is_idle:
            self.should_exit = True
        return await super().on_tick(counter)

"""A connection, with limits on the time in which its client sends headers and reads answers."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

READ_SECONDS = 5.0
READ_BYTES = 1 << 14
"""A client must read as many within that time, or all that there is."""


class Connection(H11Protocol):
    """Is closed when a request's headers take too long or never come, and cut when its answers are not read."""

    def __init__(self, seconds: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0
        self._look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time runs from here."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # pause_writing is called for the first byte that waits for the client
        self._arm()

    def data_received(self, data: bytes) -> None:
        """And, on a connection that is kept open, from the first byte of the next request."""
        if self._timer is None and self._is_between:
            self._arm()
        super().data_received(data)
        if not self._is_between:
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        """No time runs for a connection that is gone."""
        self._disarm()
        self._look_away()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """From here until everything is sent it is looked at, closed or not: `close` alone waits for that for ever."""
        super().pause_writing()
        self._look_later()

    def resume_writing(self) -> None:
        """The client has been sent everything."""
        self._look_away()
        super().resume_writing()

    def _look_later(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._look = self.loop.call_later(READ_SECONDS, self._look_now)

    def _look_away(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _look_now(self) -> None:
        if self.transport.get_write_buffer_size() > self._unread - READ_BYTES:
            self.transport.abort()
        else:
            self._look_later()

    @property
    def _is_between(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self._seconds, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._is_between and not self.transport.is_closing():
            self.conn.send(h11.ConnectionClosed())
            self.transport.close()

"""An HTTP server on this machine that misbehaves as it is told to."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Answer:
    """What a request is answered with."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


NOT_FOUND = Answer(404, b"not found")


@dataclass
class Fault:
    """What goes wrong, the first `times` times, with the requests whose "METHOD /path" has `where` in it."""

    where: str
    times: int = 10**6
    answer: Answer | None = None
    """Instead of the right answer."""
    body: bytes | None = None
    """Instead of the right body, below the right headers but for its length."""
    cut: int | None = None
    """Bytes of the body after which the connection ends."""
    silent: bool = False
    """No answer at all, until the server ends."""
    seconds_a_byte: float | None = None
    """A body that trickles."""


class Loopback:
    """Answers GET and HEAD, with Range; remembers "METHOD /path" of every request, and "bytes=..." after it."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.token: str | None = None
        """What a request must carry to be answered."""
        self.ended = threading.Event()
        self._lock = threading.Lock()
        server = self

        class Handler(_Handler):
            loopback = server

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, path: str) -> Answer:
        """The right answer to a GET of an unquoted path."""
        raise NotImplementedError

    def locked(self) -> Answer:
        """The answer to a request without the token."""
        return Answer(401, b"who are you?")

    def fault_of(self, request: str) -> Fault | None:
        """The first fault that has this request and is not used up; it is used once more."""
        with self._lock:
            for fault in self.faults:
                if fault.where in request and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answers within."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.ended.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loopback: Loopback

    def do_GET(self) -> None:
        request = f"{self.command} {unquote(urlsplit(self.path).path)}"
        span = self.headers.get("Range")
        self.loopback.requests.append(f"{request} {span}" if span else request)
        fault = self.loopback.fault_of(request)
        right = self.loopback.answer(request.partition(" ")[2])
        if self.loopback.token and self.headers.get("Authorization") != f"Bearer {self.loopback.token}":
            right = self.loopback.locked()
        match fault:
            case Fault(silent=True):
                self.loopback.ended.wait()
                self.close_connection = True
            case Fault(answer=Answer() as wrong):
                self._send(wrong, None)
            case Fault(body=bytes() as body):
                self._send(Answer(right.status, body, right.headers), None)
            case _:
                self._send(_part_of(right, span), fault)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            if fault is not None and fault.seconds_a_byte is not None:
                for byte in answer.body:
                    self.wfile.write(bytes([byte]))
                    if self.loopback.ended.wait(fault.seconds_a_byte):
                        return
            elif fault is not None and fault.cut is not None:
                self.wfile.write(answer.body[: fault.cut])
                self.close_connection = True
            else:
                self.wfile.write(answer.body)
        except OSError:  # the client had enough
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the screen."""


def _part_of(answer: Answer, span: str | None) -> Answer:
    """The asked part of an answer; only "bytes=START-" and "bytes=START-END" are known."""
    if span is None or answer.status != 200:
        return answer
    start, _, end = span.removeprefix("bytes=").partition("-")
    last = min(int(end), len(answer.body) - 1) if end else len(answer.body) - 1
    where = f"bytes {start}-{last}/{len(answer.body)}"
    return Answer(206, answer.body[int(start) : last + 1], {**answer.headers, "Content-Range": where})

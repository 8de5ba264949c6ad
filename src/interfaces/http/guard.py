"""What stands before every route: whose request it is, from which page, with which key, and how much of a body.

A page of another site can make a browser send requests here. The Host header stops one that points a name of its own at this
address (DNS rebinding), the Origin header one that does not hide where it comes from.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from ipaddress import ip_address
from time import monotonic
from typing import Any
from urllib.parse import quote

from smallgpt.interfaces.http.errors import ApiError
from smallgpt.interfaces.http.limits import BODY_BYTES, Limits
from smallgpt.interfaces.http.log import log
from smallgpt.interfaces.http.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = ("/", "/page.css", "/page.js", "/health")
PATHS = (*OPEN_PATHS, "/metrics", "/docs", "/openapi.json", "/v1/models", "/v1/completions", "/v1/chat/completions")
POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
SAFE = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
DRAIN_SECONDS = 2.0
"""In which what is still coming of a refused body is thrown away, so that the client reads the answer before the end."""


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    hosts: tuple[str, ...] = ()
    """Names of this server beside the local ones."""
    origins: tuple[str, ...] = ()
    """Pages of other sites that may call, such as https://example.org."""
    keys: tuple[bytes, ...] = ()
    """API keys; none are asked for when there are none."""


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: App, access: Access, limits: Limits, metrics: Metrics, *, log: bool) -> None:
        self._app, self._access, self._limits, self._metrics, self._log = app, access, limits, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        exchange = Exchange(scope, send, self._access)
        try:
            # A client that does not read what it is sent would otherwise keep its request for ever.
            async with asyncio.timeout(self._limits.timeout + self._limits.grace + self._limits.body_seconds):
                await self._answer(exchange, receive)
        except TimeoutError:
            exchange.status = exchange.status or 503
        finally:
            self._note(exchange)

    async def _answer(self, exchange: "Exchange", receive: Receive) -> None:
        try:
            exchange.check()
            if exchange.is_preflight:
                return await exchange.respond(204, b"")
            body = await self._read(exchange, receive)
        except ApiError as error:
            exchange.closing = True
            return await exchange.respond_error(error, lambda: _drain(receive))
        try:
            # The protocol leaves out the body of an answer to HEAD by itself.
            method = "GET" if exchange.method == "HEAD" else exchange.method
            await self._app({**exchange.scope, "method": method}, _replay(body, receive), exchange.send)
        except ApiError as error:
            await exchange.respond_error(error)
        except Exception as error:
            log(f"smallgpt: {exchange.words}: {type(error).__name__}: {error}")
            await exchange.respond_error(ApiError(500, "the server failed at this request", code="internal_error"))

    async def _read(self, exchange: "Exchange", receive: Receive) -> bytes:
        """The whole body. Raises ApiError for one that is too long or takes too long."""
        declared = exchange.headers.get(b"content-length", b"0")
        if int(declared) > BODY_BYTES:
            raise _too_large(f"{int(declared)} bytes")
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the body ended early")
                    body += message.get("body", b"")
                    if len(body) > BODY_BYTES:
                        raise _too_large(f"more than {BODY_BYTES} bytes")
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            words = f"the body did not arrive within {self._limits.body_seconds:g} s; send it faster"
            raise ApiError(408, words, code="timeout") from None

    def _note(self, exchange: "Exchange") -> None:
        path = exchange.scope["path"]
        shown = path if path in PATHS else "/v1/models/..." if path.startswith("/v1/models/") else "other"
        self._metrics.requests.labels(shown, str(exchange.status or 499)).inc()  # 499: the client left before it
        if self._log:
            seconds = monotonic() - exchange.began
            log(f"{exchange.address} {exchange.words} {exchange.status or 499} {seconds:.2f} s")


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, send: Send, access: Access) -> None:
        self.scope, self._send, self._access = scope, send, access
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.method: str = scope["method"]
        self.address = _unmapped(scope["client"][0]) if scope.get("client") else "unknown"
        self.status: int | None = None
        self.closing = False
        self.began = monotonic()
        self._origin: bytes | None = None  # one that may read the answer

    @property
    def words(self) -> str:
        """Method and path, safe to print."""
        return f"{quote(self.method)} {quote(self.scope['path'])[:200]}"

    @property
    def is_preflight(self) -> bool:
        """Does a browser ask whether an allowed page may send the request?"""
        return self.method == "OPTIONS" and b"access-control-request-method" in self.headers

    def check(self) -> None:
        """Raises ApiError for another host, another origin, or a missing key. Notes whose request it is."""
        host = self.headers.get(b"host", b"").decode("latin-1").lower()
        here = _unmapped(self.scope["server"][0]) if self.scope.get("server") else ""
        named = (*LOCAL, *self._access.hosts, f"[{here}]" if ":" in here else here)
        if _without_port(host) not in named:
            words = f"the Host header is {host[:100]!r}, which is no name of this server"
            raise ApiError(403, f"{words}; it can be added with --allow-host", code="wrong_host")
        origin = self.headers.get(b"origin")
        if origin is not None:
            words = origin.decode("latin-1").lower()
            if words in self._access.origins:
                self._origin = origin
            elif words not in (f"http://{host}", f"https://{host}"):
                words = f"pages of {words[:100]!r} may not call this server"
                raise ApiError(403, f"{words}; it can be added with --allow-origin", code="wrong_origin")
        self.scope["smallgpt.client"] = self._client()

    def _client(self) -> str:
        """Who takes turns with others: a key's holder, or an address."""
        keys = self._access.keys
        if not keys or self.scope["path"] in OPEN_PATHS or self.is_preflight:
            return f"address {self.address}"
        kind, _, given = self.headers.get(b"authorization", b"").partition(b" ")
        # Every key is compared, so that the time does not tell which one was close.
        matches = [hmac.compare_digest(given.strip(), key) for key in keys]
        if kind.lower() != b"bearer" or not any(matches):
            words = "the API key is wrong" if given else "an API key is needed"
            raise ApiError(
                401,
                f"{words}: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return f"key {matches.index(True)}"

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Send on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), *SAFE]
            if self._origin is not None:
                headers += [
                    (b"access-control-allow-origin", self._origin),
                    (b"access-control-expose-headers", b"retry-after"),
                    (b"vary", b"Origin"),
                ]
                if self.is_preflight:
                    headers += [
                        (b"access-control-allow-methods", b"GET, POST"),
                        # OpenAI's client sends headers of its own, which differ from version to version.
                        (b"access-control-allow-headers", self.headers.get(b"access-control-request-headers", b"")),
                    ]
            if self.closing:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def respond(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """A whole answer."""
        await self._start(status, body, headers or {})
        await self.send({"type": "http.response.body", "body": body})

    async def respond_error(self, error: ApiError, before_end: Callable[[], Awaitable[None]] | None = None) -> None:
        """An error, unless an answer has begun; then the connection is cut, which a client notices."""
        if self.status is not None:
            raise error
        body = error.encoded()
        await self._start(error.status, body, {**error.headers, "Content-Type": "application/json"})
        if before_end is not None:
            await self.send({"type": "http.response.body", "body": body, "more_body": True})
            await before_end()
            body = b""
        await self.send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        given = {**headers, **({"Content-Length": str(len(body))} if status != 204 else {})}
        pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _unmapped(address: str) -> str:
    """An IPv4 address as such, also where a socket for IPv6 took it: ::ffff:192.0.2.1 is 192.0.2.1."""
    try:
        mapped = getattr(ip_address(address), "ipv4_mapped", None)
    except ValueError:
        return address
    return str(mapped or address)


def _too_large(size: str) -> ApiError:
    return ApiError(413, f"the body has {size}; at most {BODY_BYTES}", code="body_too_large")


async def _drain(receive: Receive) -> None:
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        pass


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body again, then whatever comes: the end of the connection."""
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again

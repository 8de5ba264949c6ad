"""Other sites' pages, other hosts' names and other people's keys."""

import asyncio
from collections.abc import Iterator

import pytest

from smallgpt.interfaces.http.guard import Access, Guard, Receive, Scope, Send
from smallgpt.interfaces.http.limits import Limits
from smallgpt.interfaces.http.metrics import Metrics
from tests.loopback.model_server import ModelServer, model_server

BODY = {"prompt": "Once", "max_tokens": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    access = Access(("127.0.0.1", "stories.example.org"), ("https://friend.example.org",))
    with model_server(access=access) as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[ModelServer]:
    with model_server(access=Access(keys=(b"first-key", b"sch\xc3\xb6n"))) as running:
        yield running


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("stories.example.org", 200),
        ("stories.example.org:443", 200),
        ("evil.example.org", 403),
        ("localhost.evil.example.org", 403),
        ("127.0.0.1.evil.example.org:8000", 403),
        ("stories.example.org:evil", 403),
        ("10.0.0.1", 403),
        ("[::2]", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_server_are_answered(server: ModelServer, host: str, status: int) -> None:
    answer = server.raw(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    if status == 403:
        assert b"which is no name of this server; it can be added with --allow-host" in answer


@pytest.mark.parametrize(("host", "passes"), [("192.0.2.5:8000", True), ("192.0.2.6", False)])
def test_an_ipv4_client_of_a_socket_for_ipv6_is_known_by_its_ipv4_address(host: str, passes: bool) -> None:
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["smallgpt.client"])

    async def receive() -> Scope:
        return {"type": "http.request"}

    async def send(message: Scope) -> None:
        pass

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/health",
        "headers": [(b"host", host.encode())],
        "server": ("::ffff:192.0.2.5", 8000),
        "client": ("::ffff:192.0.2.9", 50_000),
    }
    asyncio.run(Guard(app, Access(("[::]",)), Limits(), Metrics(), log=False)(scope, receive, send))
    assert passed == (["address 192.0.2.9"] if passes else [])


def test_a_request_without_a_host_is_refused(server: ModelServer) -> None:
    assert server.raw(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    assert server.raw(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("same", True),
        ("https://friend.example.org", True),
        ("https://evil.example.org", False),
        ("http://friend.example.org", False),
        ("https://friend.example.org:8443", False),
        ("http://localhost:1", False),
        ("null", False),
        ("", False),
    ],
)
def test_only_pages_of_this_server_or_of_friends_may_call(server: ModelServer, origin: str, allowed: bool) -> None:
    origin = server.url if origin == "same" else origin
    with server.client() as client:
        answer = client.post("/v1/completions", json=BODY, headers={"Origin": origin})
    assert answer.status_code == (200 if allowed else 403)
    readable = answer.headers.get("access-control-allow-origin")
    assert readable == (origin if origin.startswith("https://friend.example.org") and allowed else None)


def test_a_friends_page_may_ask_before_it_sends(server: ModelServer) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type, x-stainless-os"}
    with server.client() as client:
        friend = client.options("/v1/completions", headers={"Origin": "https://friend.example.org", **asks})
        other = client.options("/v1/completions", headers={"Origin": "https://evil.example.org", **asks})
    assert friend.status_code == 204
    assert friend.headers["access-control-allow-origin"] == "https://friend.example.org"
    assert "POST" in friend.headers["access-control-allow-methods"]
    assert friend.headers["access-control-allow-headers"] == "content-type, x-stainless-os"
    assert friend.headers["access-control-expose-headers"] == "retry-after"
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Bearer first-key", 200),
        (b"bearer first-key", 200),
        (b"Bearer sch\xc3\xb6n", 200),
        (b"Bearer first-ke", 401),
        (b"Bearer first-keyx", 401),
        (b"Bearer first-key,sch\xc3\xb6n", 401),
        (b"Basic first-key", 401),
        (b"first-key", 401),
        (b"Bearer", 401),
        (b"Bearer \xff\xfe", 401),
        (b"", 401),
    ],
)
def test_one_of_the_keys_is_needed(locked: ModelServer, header: bytes, status: int) -> None:
    with locked.client() as client:
        answer = client.post("/v1/completions", json=BODY, headers={b"Authorization": header})
    assert answer.status_code == status, answer.text
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"
        assert "first-key" not in answer.text


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/docs", "/openapi.json", "/nothing", "//health"])
def test_everything_but_the_page_and_health_needs_a_key(locked: ModelServer, path: str) -> None:
    with locked.client() as client:
        assert client.get(f"{locked.url}{path}").status_code == 401
        assert client.get("/health").status_code == 200
        assert client.get("/").status_code == 200  # the page, which asks for the key

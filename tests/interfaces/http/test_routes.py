"""What is there beside completions: health, figures, the description, the page; and nothing else."""

import re
from html.parser import HTMLParser
from importlib.resources import files

import openai
import pytest

from smallgpt.interfaces.http.bodies import ChatBody, CompletionBody
from tests.loopback.model_server import ModelServer


def test_health_is_ok(server: ModelServer) -> None:
    with server.client() as client:
        answer = client.get("/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok", "reason": None})
        head = client.head("/health")
        assert (head.status_code, head.content) == (200, b"")


def test_figures_count_requests_tokens_and_times(server: ModelServer) -> None:
    def figures() -> list[float]:
        return [
            server.figure("smallgpt_requests_total", path="/v1/completions", status="200"),
            server.figure("smallgpt_requests_total", path="/v1/completions", status="400"),
            server.figure("smallgpt_sequences_total", outcome="length"),
            server.figure("smallgpt_tokens_total"),
            server.figure("smallgpt_prompt_tokens_total"),
            server.figure("smallgpt_first_token_seconds_count"),
            server.figure("smallgpt_next_token_seconds_count"),
        ]

    before = figures()
    assert server.complete("Once", max_tokens=5, min_tokens=5).status_code == 200
    assert server.complete("Once", max_tokens=-1).status_code == 400
    after = figures()
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1, 5, 4, 1, 4]
    assert server.figure("smallgpt_waiting") == server.figure("smallgpt_active_streams") == 0


def test_paths_of_clients_make_no_new_figures(server: ModelServer) -> None:
    with server.client() as client:
        for number in range(20):
            client.get(f"/nothing-{number}")
            client.get(f"/v1/models/nothing-{number}")
        assert "nothing" not in client.get("/metrics").text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("PUT", "/health", 405),
        ("OPTIONS", "/v1/completions", 405),
        ("HEAD", "/nothing", 404),
        ("GET", "/docs/oauth2-redirect", 404),
        ("GET", "/redoc", 404),
    ],
)
def test_what_is_not_there_is_an_error_in_openais_form(
    server: ModelServer, method: str, path: str, status: int
) -> None:
    with server.client() as client:
        answer = client.request(method, path)
    assert answer.status_code == status
    if method != "HEAD":
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert "/docs" in answer.json()["error"]["message"]


class References(HTMLParser):
    """Everything that a page loads or links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_description_is_served_without_any_other_server(server: ModelServer) -> None:
    with server.client() as client:
        page, description = client.get("/docs"), client.get("/openapi.json").json()
    parser = References()
    parser.feed(page.text)
    assert parser.found == ["/page.css", "/openapi.json"]
    assert page.headers["content-type"].startswith("text/html")
    schemas = description["components"]["schemas"]
    for name, kind in (("CompletionBody", CompletionBody), ("ChatBody", ChatBody)):
        assert set(schemas[name]["properties"]) == set(kind.model_fields)
        for field in kind.model_fields:
            assert f"<code>{field}</code>" in page.text
    for reference in re.findall(r'"#/components/schemas/(\w+)"', str(description).replace("'", '"')):
        assert reference in schemas
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics"} <= set(description["paths"])


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/models", "/nothing"])
def test_every_answer_forbids_what_no_page_here_needs(server: ModelServer, path: str) -> None:
    with server.client() as client:
        headers = client.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("/", "index.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
    ],
)
def test_the_page_is_three_files_of_the_package(server: ModelServer, path: str, name: str, kind: str) -> None:
    file = files("smallgpt.interfaces.http") / "page" / name
    with server.client() as client:
        answer = client.get(path)
    assert answer.status_code == 200
    assert answer.content == file.read_bytes()
    assert answer.headers["content-type"].startswith(kind)


def test_a_prompt_beyond_the_block_reads_its_end(client: openai.OpenAI) -> None:
    long = "A dog. " * 20
    texts = [
        client.completions.create(model="tiny", prompt=prompt, max_tokens=1, temperature=0).choices[0].text
        for prompt in (long, long[-32:])
    ]
    assert texts[0] == texts[1]

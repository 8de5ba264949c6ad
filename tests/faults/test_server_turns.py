"""What a request is left with when some of its texts have no turn, or nobody fetches them."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from smallgpt.application.streams import Request, Token
from smallgpt.infrastructure.tokenizers import byte_tokenizer
from smallgpt.interfaces.http.answers import CompletionAnswer
from smallgpt.interfaces.http.app import Reply
from smallgpt.interfaces.http.errors import ApiError, stopping
from smallgpt.interfaces.http.guard import Access
from smallgpt.interfaces.http.limits import Limits
from smallgpt.interfaces.http.tickets import Piece, Ticket
from smallgpt.interfaces.http.worker import Worker
from tests.loopback.model_server import SlowEngine, model_server

ENDLESS = {"prompt": "Once", "max_tokens": 9000, "min_tokens": 9000, "seed": 1}
GREEDY, MODEST = ({"Authorization": f"Bearer {key}"} for key in ("key-a", "key-b"))


def test_a_late_text_does_not_cost_its_request_what_is_written() -> None:
    with model_server(
        Limits(streams=1, queue=4, max_new_tokens=9000, timeout=0.5, grace=0), engine=SlowEngine
    ) as server:
        answer = server.complete(**{**ENDLESS, "n": 2})
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["choices"]
    assert first["text"]
    assert second["text"] == ""
    assert first["finish_reason"] == second["finish_reason"] == "length"


def test_a_displaced_text_does_not_cost_its_request_what_is_written() -> None:
    limits = Limits(streams=1, queue=4, max_new_tokens=9000, grace=0)
    access = Access(keys=(b"key-a", b"key-b"))
    with model_server(limits, access, SlowEngine) as server, ThreadPoolExecutor() as pool:

        def events() -> Iterator[dict[str, object]]:
            with (
                server.client(headers=GREEDY) as client,
                client.stream("POST", "/v1/completions", json={**ENDLESS, "n": 4, "stream": True}) as stream,
            ):
                for line in filter(None, stream.iter_lines()):
                    yield json.loads(line.removeprefix("data: "))

        def ask() -> int:
            with server.client(headers=MODEST) as client:
                return client.post("/v1/completions", json={"max_tokens": 2}).status_code

        came = events()
        assert "choices" in next(came)
        modest = [pool.submit(ask) for _ in range(2)]  # three of the other one wait, and there is one place
        ended = next(event for event in came if event.get("error") or event["choices"][0]["finish_reason"])  # type: ignore[index]
        assert ended["choices"] == [{"index": 3, "text": "", "logprobs": None, "finish_reason": "length"}], ended
        came.close()  # type: ignore[attr-defined]
        assert [one.result() for one in modest] == [200, 200]


def test_pieces_that_nobody_fetches_end_their_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallgpt.interfaces.http.worker.UNFETCHED", 5)
    ticket = Ticket("somebody", [Request([1], 9000, min_new_tokens=9000)], (), byte_tokenizer())
    with model_server(engine=SlowEngine) as server:
        server.worker.submit(ticket)
        server.wait_for(lambda: ticket.is_dropped and server.worker.is_idle)
    kept = [ticket.events.get_nowait() for _ in range(ticket.events.qsize())]
    assert [type(item) for item in kept] == [Piece] * 5 + [ApiError]


def test_what_came_before_an_error_is_sent_before_it() -> None:
    tokenizer = byte_tokenizer()
    sent: list[bytes] = []

    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    async def send(message: dict[str, object]) -> None:
        body = message.get("body", b"")
        assert isinstance(body, bytes)
        sent.append(body)

    async def reply(worker: Worker) -> None:
        ticket = Ticket("somebody", [Request([1], 5)], (), tokenizer)
        ticket.events.put_nowait(Piece(0, "a", Token(97)))
        ticket.events.put_nowait(stopping())
        answer = CompletionAnswer("tiny", tokenizer, [[1]], [""])
        await Reply(ticket, answer, worker, stream=True, usage=False)({}, receive, send)  # type: ignore[arg-type]

    with model_server() as server:
        asyncio.run(reply(server.worker))
    assert [b'"text":"a"' in b"".join(sent), b'"code": "stopping"' in b"".join(sent)] == [True, False]
    assert b"".join(sent).count(b"data: ") == 2
    assert b"stopping" in sent[-1]

"""A model that fails, once, always, or for good."""

import socket
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import httpx
import pytest

from smallgpt.application.engine import Engine
from smallgpt.interfaces.http.worker import FAILURES
from tests.faults.conftest import Run
from tests.loopback.model_server import PATIENCE, SlowEngine, model_server, write_model


@pytest.fixture(autouse=True)
def no_failures() -> Iterator[None]:
    yield
    SlowEngine.failures = 0
    SlowEngine.gate.set()


def test_a_failed_step_is_told_and_the_server_goes_on() -> None:
    with model_server(engine=SlowEngine) as server:
        SlowEngine.failures = 1
        answer = server.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_error")
        assert "made to fail" not in answer.text
        assert server.complete().status_code == 200
        assert server.figure("smallgpt_sequences_total", outcome="failed") == 1
        with server.client() as client:
            assert client.get("/health").status_code == 200


def test_a_failure_in_the_middle_of_a_stream_is_an_event() -> None:
    with model_server(engine=SlowEngine) as server, server.client() as client:
        body = {"prompt": "Once", "max_tokens": 9000, "min_tokens": 9000, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = (line for line in stream.iter_lines() if line)
            assert '"text"' in next(lines)
            SlowEngine.failures = 1
            *_, last = lines
        assert '"code":"engine_error"' in last
        assert server.figure("smallgpt_active_streams") == 0


def test_a_model_that_always_fails_makes_the_server_unhealthy_until_it_works_again() -> None:
    with model_server(engine=SlowEngine) as server, server.client() as client:
        SlowEngine.failures = FAILURES
        assert [server.complete().status_code for _ in range(FAILURES)] == [500] * FAILURES
        health = client.get("/health")
        assert health.status_code == 503
        assert health.json() == {"status": "unhealthy", "reason": f"the last {FAILURES} steps of the model failed"}
        assert server.complete().status_code == 200
        assert client.get("/health").status_code == 200


def no_engine() -> Engine:
    raise MemoryError("no room")


def test_an_engine_that_cannot_be_made_again_ends_the_server_and_leaves_nobody_waiting() -> None:
    with model_server(engine=SlowEngine) as server, ThreadPoolExecutor() as pool:
        server.worker._make_engine = no_engine
        SlowEngine.gate.clear()
        asked = [pool.submit(server.complete, n=4)]
        server.wait_for(lambda: len(server.worker._running) == 4)
        asked.append(pool.submit(server.complete))
        server.wait_for(lambda: len(server.worker._queue) == 1)
        SlowEngine.failures = 1
        SlowEngine.gate.set()
        running, waiting = (one.result() for one in asked)
        assert (running.status_code, running.json()["error"]["code"]) == (500, "engine_error")
        assert (waiting.status_code, waiting.json()["error"]["code"]) == (503, "engine_dead")
        assert "the model cannot go on" in waiting.json()["error"]["message"]
        assert server.worker.is_idle
        assert server.worker.trouble == "the model cannot go on: MemoryError: no room"
        server.wait_for(lambda: server.running.should_exit)


def test_the_command_ends_with_an_error_when_its_model_cannot_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingEngine(Engine):
        made = 0

        def __init__(self, *args: Any, **settings: Any) -> None:
            FailingEngine.made += 1
            if FailingEngine.made > 1:
                raise MemoryError("no room")
            super().__init__(*args, **settings)

        def step(self) -> Any:
            raise RuntimeError("made to fail")

    monkeypatch.setattr("smallgpt.application.engine.Engine", FailingEngine)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def ask() -> int:
        while True:
            try:
                return httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={}, timeout=PATIENCE).status_code
            except httpx.ConnectError:
                sleep(0.02)

    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask)
        ended = run("serve", str(write_model(tmp_path / "tiny")), "--port", str(port), "--quiet")
        assert asked.result() == 500
    assert ended.code == 6
    failed, *told = ended.err.splitlines()
    assert failed == "smallgpt: a step failed: RuntimeError: made to fail"
    assert told[0] == "smallgpt: the model cannot go on: MemoryError: no room"
    assert told[1].startswith("Start the server again; ")


def test_the_failed_engine_is_gone_before_there_is_a_new_one() -> None:
    """Memory may be what was short."""
    with model_server(engine=SlowEngine) as server:
        make, old = server.worker._make_engine, weakref.ref(server.worker._engine)
        left: list[Engine | None] = []

        def make_and_look() -> Engine:
            left.append(old())
            return make()

        server.worker._make_engine = make_and_look
        SlowEngine.failures = 1
        assert server.complete().status_code == 500
        assert server.complete().status_code == 200
        assert left == [None]


class Gone:
    """A terminal that is no more."""

    def write(self, words: str) -> int:
        raise OSError(5, "Input/output error")

    def flush(self) -> None:
        """There is nothing to be flushed."""


def test_a_failure_that_cannot_be_printed_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with model_server(engine=SlowEngine) as server:
        monkeypatch.setattr(sys, "stderr", Gone())
        SlowEngine.failures = 1
        assert server.complete().status_code == 500
        assert server.complete().status_code == 200

"""More clients than there is room for, greedy ones, and a model that fails."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest

from smallgpt.interfaces.http.guard import Access
from smallgpt.interfaces.http.limits import Limits
from tests.loopback.model_server import PATIENCE, ModelServer, SlowEngine, model_server

ROOT = Path(__file__).parents[2]
KEYS = {"greedy": b"key-a", "modest": b"key-b"}


@pytest.fixture(autouse=True)
def no_failures() -> Iterator[None]:
    yield
    SlowEngine.failures = 0
    SlowEngine.gate.set()


async def ask_all(url: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """All at once, each on its own connection."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
        return list(await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies)))


def test_of_200_clients_none_is_lost_and_the_rest_are_told_to_come_again() -> None:
    with model_server(Limits(streams=4, queue=16), engine=SlowEngine) as server:
        bodies = [{"prompt": "Once", "max_tokens": 3, "min_tokens": 3, "seed": i} for i in range(200)]
        answers = asyncio.run(ask_all(server.url, bodies))
        counts = Counter(answer.status_code for answer in answers)
        assert set(counts) <= {200, 429}
        assert counts[200] >= 16
        assert counts[429] >= 1
        for answer in answers:
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                assert answer.json()["error"]["code"] == "queue_full"
        written = {
            body["seed"]: a.json()["choices"][0]["text"]
            for body, a in zip(bodies, answers, strict=True)
            if a.is_success
        }
        for seed in list(written)[:3]:
            assert server.complete(max_tokens=3, min_tokens=3, seed=seed).json()["choices"][0]["text"] == written[seed]
        assert server.figure("smallgpt_active_streams") == server.figure("smallgpt_waiting") == 0


@pytest.fixture
def shared() -> Iterator[ModelServer]:
    """One stream, and no token before the gate is open."""
    SlowEngine.gate.clear()
    limits = Limits(streams=1, queue=50, grace=0)
    with model_server(limits, Access(keys=tuple(KEYS.values())), SlowEngine) as running:
        yield running
        SlowEngine.gate.set()


def ask_as(server: ModelServer, who: str) -> httpx.Response:
    with server.client(headers={b"Authorization": b"Bearer " + KEYS[who]}) as client:
        return client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2, "min_tokens": 2})


def waiting(server: ModelServer) -> int:
    return len(server.worker._queue)


def ask_greedily(
    server: ModelServer, pool: ThreadPoolExecutor, n: int, ask: Callable[[str], int]
) -> "list[Future[int]]":
    """One that has the stream, and n that wait for it."""
    first = pool.submit(ask, "greedy")
    server.wait_for(lambda: len(server.worker._running) == 1)
    others = [pool.submit(ask, "greedy") for _ in range(n)]
    server.wait_for(lambda: waiting(server) == n)
    return [first, *others]


def test_fifty_requests_of_one_client_do_not_starve_another(shared: ModelServer) -> None:
    order: list[str] = []

    def ask(who: str) -> int:
        status = ask_as(shared, who).status_code
        order.append(who)
        return status

    with ThreadPoolExecutor(60) as pool:
        greedy = ask_greedily(shared, pool, 48, ask)
        modest = [pool.submit(ask, "modest") for _ in range(2)]
        shared.wait_for(lambda: waiting(shared) == 50)
        SlowEngine.gate.set()
        assert [future.result() for future in [*greedy, *modest]] == [200] * 51
    last = max(at for at, who in enumerate(order) if who == "modest")
    assert last <= 20  # the fifth to be written; threads may hear of it a little later


def test_a_full_queue_makes_room_for_another_client(shared: ModelServer) -> None:
    def ask(who: str) -> int:
        return ask_as(shared, who).status_code

    with ThreadPoolExecutor(60) as pool:
        greedy = ask_greedily(shared, pool, 50, ask)
        assert ask("greedy") == 429
        modest = pool.submit(ask, "modest")
        done, _ = wait(greedy, PATIENCE, FIRST_COMPLETED)
        assert [future.result() for future in done] == [429]
        SlowEngine.gate.set()
        assert modest.result() == 200
        assert Counter(future.result() for future in greedy) == {200: 50, 429: 1}


@pytest.mark.slow
def test_memory_is_flat_over_thousands_of_requests(tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    script = ROOT / "tests" / "benchmarks" / "serve_load.py"
    words = [sys.executable, str(script), "--only", "memory", "--requests", "1500", "--tiny", "--out", str(out)]
    subprocess.run(words, check=True, cwd=ROOT, timeout=250)
    found = json.loads(out.read_text())["rows"][0]
    assert found["failed"] == 0
    assert found["grown_mib"] < 12, found

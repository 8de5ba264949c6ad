"""The server under load, next to the engine that it stands on. Prints a JSON list; --out writes it with where it comes from.

overhead: time per token of 8 streams through the server, over that of the engine alone with 8 streams; and what of the
  processors' time a step costs: the server's event loop, its other threads (the model, waiting for each other included),
  and the clients.
clients: what 200 clients at once are answered.
memory: resident memory of the server's process over many requests.

The server is a process of its own, as in use; the clients are this one.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from smallgpt.infrastructure.provenance import record

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, for the tiny model

N_STREAMS = 8
NEW_TOKENS = 96  # within the block of any preset
ROUNDS, TURNS = 3, 3


@contextmanager
def served(run: str, *flags: str) -> Iterator[tuple[str, int]]:
    """`smallgpt serve` as a process: its address and its number."""
    words = [sys.executable, "-m", "smallgpt", "serve", run, "--port", "0", "--quiet", *flags]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        try:
            assert found is not None
            yield found[0], process.pid
        finally:
            process.terminate()


def body(**fields: Any) -> dict[str, Any]:
    """A completion of exactly max_tokens tokens."""
    longest = fields.get("max_tokens", NEW_TOKENS)
    return {"prompt": "Once upon a time", "max_tokens": longest, "min_tokens": longest, **fields}


async def stream(client: httpx.AsyncClient, seed: int) -> None:
    """Read a whole stream."""
    async with client.stream("POST", "/v1/completions", json=body(seed=seed, stream=True)) as answer:
        assert answer.status_code == 200
        lines = [line async for line in answer.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"


async def seconds_of_streams(url: str) -> float:
    """N_STREAMS streams at once."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        began = time.perf_counter()
        await asyncio.gather(*(stream(client, seed) for seed in range(N_STREAMS)))
        return time.perf_counter() - began


def seconds_of_engine(run: str) -> list[float]:
    """The same texts by the engine alone, in a process of its own, so that neither heats the other's caches."""
    code = f"""
import json, time
from pathlib import Path
from smallgpt.application.engine import Engine
from smallgpt.application.streams import Request
from smallgpt.domain.sampling import Sampling
from smallgpt.interfaces.packed_weights import open_for_generation
opened = open_for_generation(Path({run!r}), "cpu", "torch", "float32", print)
ids = opened.tokenizer.encode("Once upon a time")
sampling = Sampling(n_tokens=opened.tokenizer.vocab_size)
times = []
for _ in range({ROUNDS + 1}):
    engine = Engine(opened.model, {N_STREAMS})
    began = time.perf_counter()
    streams = [engine.add(Request(ids, {NEW_TOKENS}, sampling, seed, opened.tokenizer.end_of_text, {NEW_TOKENS}))
               for seed in range({N_STREAMS})]
    while not all(stream.finish for stream in streams):
        engine.step()
    times.append(time.perf_counter() - began)
print(json.dumps(times[1:]))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found: list[float] = json.loads(done.stdout)
    return found


def processor_seconds(stat: str) -> float:
    """What a process or thread has used, by its /proc/.../stat."""
    fields = Path(stat).read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def overhead(run: str) -> dict[str, Any]:
    """Milliseconds a token of one stream by the engine and by the server, and what the server adds; in turns."""
    engine: list[float] = []
    server: list[float] = []
    with served(run, "--streams", str(N_STREAMS)) as (url, pid):
        asyncio.run(seconds_of_streams(url))
        stats = [f"/proc/{pid}/task/{pid}/stat", f"/proc/{pid}/stat", f"/proc/{os.getpid()}/stat"]
        before = [processor_seconds(stat) for stat in stats]
        for _ in range(TURNS):
            engine += seconds_of_engine(run)  # meanwhile the server waits
            server += [asyncio.run(seconds_of_streams(url)) for _ in range(ROUNDS)]
        used = [processor_seconds(stat) - start for stat, start in zip(stats, before, strict=True)]
    a, b = (1000 * median(times) / NEW_TOKENS for times in (engine, server))
    loop, all_threads, own = (1000 * seconds / (TURNS * ROUNDS * NEW_TOKENS) for seconds in used)
    return {
        "measured": f"time per token of {N_STREAMS} streams",
        "engine_ms": round(a, 3),
        "server_ms": round(b, 3),
        "added": f"{b / a - 1:.1%}",
        "event_loop_cpu_ms": round(loop, 2),
        "other_threads_cpu_ms": round(all_threads - loop, 2),
        "clients_cpu_ms": round(own, 2),
    }


async def status(client: httpx.AsyncClient, seed: int) -> str:
    """The status of one client's request, or how the connection failed."""
    try:
        answer = await client.post("/v1/completions", json=body(seed=seed, max_tokens=32))
    except httpx.HTTPError as error:
        return type(error).__name__
    if answer.status_code == 200:
        return "200" if answer.json()["usage"]["completion_tokens"] == 32 else "cut"
    return str(answer.status_code) + ("" if "retry-after" in answer.headers else " without Retry-After")


async def statuses(url: str, n_clients: int) -> Counter[str]:
    """All at once, each on a connection of its own."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        return Counter(await asyncio.gather(*(status(client, seed) for seed in range(n_clients))))


def clients(run: str, n_clients: int = 200) -> dict[str, Any]:
    """What so many clients at once are told."""
    with served(run) as (url, _):
        found = asyncio.run(statuses(url, n_clients))
    answered, refused = found.pop("200", 0), found.pop("429", 0)
    return {
        "measured": f"{n_clients} clients at once",
        "answered": answered,
        "told_429": refused,
        "lost": dict(found) or "none",
    }


def resident_mib(pid: int) -> float:
    """A process's VmRSS."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def ask(url: str, first: int, n_requests: int) -> int:
    """So many small requests over 8 connections: how many failed. One in ten leaves its stream early."""
    failed = 0
    numbers = iter(range(first, first + n_requests))

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal failed
        for number in numbers:
            if number % 10:
                answer = await client.post("/v1/completions", json=body(seed=number, max_tokens=4, logprobs=2))
                failed += answer.status_code != 200
            else:
                async with client.stream("POST", "/v1/completions", json=body(seed=number, stream=True)) as left:
                    failed += left.status_code != 200

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await asyncio.gather(*(work(client) for _ in range(8)))
    return failed


def memory(run: str, n_requests: int) -> dict[str, Any]:
    """After each tenth of the requests; the first fills what is filled once."""
    with served(run) as (url, pid):
        parts = [n_requests // 10] * 10
        seen, failed = [], 0
        for index, part in enumerate(parts):
            failed += asyncio.run(ask(url, index * part, part))
            seen.append(round(resident_mib(pid), 1))
    return {
        "measured": f"memory over {sum(parts):,} requests",
        "failed": failed,
        "mib_after_each_tenth": seen,
        "grown_mib": round(seen[-1] - seen[0], 1),
    }


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="run, checkpoint or exported folder")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model instead of a run")
    parser.add_argument("--only", choices=["overhead", "clients", "memory"], help="just one of the three")
    parser.add_argument("--requests", type=int, default=10_000, help="for memory")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    given = parser.parse_args()
    if (given.run is None) != given.tiny:
        parser.error("give a run, or --tiny")
    with tempfile.TemporaryDirectory() as folder:
        if given.tiny:
            from tests.loopback.model_server import write_model

            given.run = str(write_model(Path(folder) / "tiny"))
        rows = []
        if given.only in (None, "overhead"):
            rows.append(overhead(given.run))
        if given.only in (None, "clients"):
            rows.append(clients(given.run))
        if given.only in (None, "memory"):
            rows.append(memory(given.run, given.requests))
    print(json.dumps(rows, indent=2))
    if given.out is not None:
        given.out.write_text(json.dumps(record({"run": str(given.run)}, rows), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

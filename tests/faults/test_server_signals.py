"""The server as a process: told to stop while it writes, once or twice."""

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.loopback.model_server import PATIENCE, write_model

Start = Callable[..., "subprocess.Popen[str]"]
ENDLESS = {"prompt": "Once", "max_tokens": 100_000, "min_tokens": 100_000, "stream": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def address(process: "subprocess.Popen[str]") -> str:
    """Where it serves, once it says so."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"serving tiny at (http://\S+:[1-9]\d*) \(Ctrl-C ends it\)\n", line)
    assert found, (line, process.communicate())
    return found[1]


@contextmanager
def stream(url: str, **fields: object) -> Iterator[Iterator[str]]:
    """The data of the events of a stream, of which the first has come."""
    with (
        httpx.Client(base_url=url, timeout=PATIENCE) as client,
        client.stream("POST", "/v1/completions", json={**ENDLESS, **fields}) as answer,
    ):
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
        next(lines)
        yield lines


def test_a_stream_is_ended_cleanly_when_the_grace_time_is_over(start: Start, folder: Path) -> None:
    process = start("serve", str(folder), "--port", "0", "--grace", "0.3", "--max-new-tokens", "100000")
    with stream(address(process)) as lines:
        process.send_signal(signal.SIGTERM)
        *_, last, done = lines
    assert done == "[DONE]"
    assert json.loads(last)["choices"][0]["finish_reason"] == "length"
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert out == ""
    assert re.fullmatch(r"127\.0\.0\.1 POST /v1/completions 200 \d+\.\d\d s\nsmallgpt: terminated\n", err), err


@pytest.mark.slow
def test_what_runs_is_finished_and_what_comes_is_told_to_come_again(start: Start, folder: Path) -> None:
    words = ["--port", "0", "--grace", "60", "--max-new-tokens", "100000", "--streams", "1", "--quiet"]
    process = start("serve", str(folder), *words)
    url = address(process)
    with stream(url, max_tokens=3000, min_tokens=3000) as lines, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE
        while (health := client.get("/health")).status_code == 200:
            assert time.monotonic() < deadline
        assert health.json()["status"] == "stopping"
        refused = client.post("/v1/completions", json={"prompt": "Tom"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert "stopping" in refused.json()["error"]["message"]
        received = list(lines)
    assert received[-1] == "[DONE]"
    assert len(received) == 3000  # the first one is gone already, and [DONE] is one
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err == "smallgpt: interrupted\n"


def test_the_second_signal_ends_it_at_once(start: Start, folder: Path) -> None:
    words = ["--port", "0", "--grace", "600", "--timeout", "600", "--max-new-tokens", "100000", "--quiet"]
    process = start("serve", str(folder), *words)
    with stream(address(process)):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        assert time.monotonic() - began < 20
    _, err = process.communicate()
    assert process.returncode == 143
    assert err == ""


@pytest.mark.slow
def test_a_server_for_other_machines_asks_for_its_key(start: Start, folder: Path) -> None:
    process = start("serve", str(folder), "--port", "0", "--host", "0.0.0.0", SMALLGPT_API_KEY="secret")
    port = address(process).rpartition(":")[2]
    url = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert "secret" not in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGHUP, 129, "hung up")]
)
def test_a_signal_before_any_request_ends_it(
    start: Start, folder: Path, number: signal.Signals, code: int, said: str
) -> None:
    process = start("serve", str(folder), "--port", "0")
    port = int(address(process).rpartition(":")[2])
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (code, "", f"smallgpt: {said}\n")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)

"""The server over a tiny random model, in this process, on a port of its own."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import save_file

from smallgpt.application.engine import Engine
from smallgpt.application.streams import Stream, Token
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.tokenizers import byte_tokenizer
from smallgpt.interfaces.http.app import make_app
from smallgpt.interfaces.http.guard import Access
from smallgpt.interfaces.http.limits import Limits
from smallgpt.interfaces.http.metrics import Metrics
from smallgpt.interfaces.http.planning import Served
from smallgpt.interfaces.http.running import Running, address_of, listen
from smallgpt.interfaces.http.worker import Worker

CONFIG = GPTConfig(block_size=32, vocab_size=257, n_layer=1, n_head=2, n_embd=16, dropout=0.0)
PATIENCE = 60.0
"""Seconds; a busy machine takes long over everything."""


def tiny_model() -> GPT:
    """The same weights every time; its tokens are bytes."""
    torch.manual_seed(1)
    return GPT(CONFIG).eval()


def write_model(folder: Path) -> Path:
    """That model as a folder that every command takes."""
    folder.mkdir(parents=True)
    model = tiny_model()
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, folder / "model.safetensors")
    (folder / "config.json").write_text(CONFIG.model_dump_json())
    byte_tokenizer().save(folder / "tokenizer.json")
    return folder


class SlowEngine(Engine):
    """Gives a token every `seconds`, none while the gate is shut, and fails as often as `failures` says."""

    seconds = 0.01
    failures = 0
    gate = threading.Event()
    gate.set()

    def step(self) -> list[tuple[Stream, list[Token]]]:
        time.sleep(self.seconds)
        assert self.gate.wait(PATIENCE)
        if SlowEngine.failures:
            SlowEngine.failures -= 1
            raise RuntimeError("made to fail")
        return super().step()


@dataclass(frozen=True)
class ModelServer:
    """A running server."""

    url: str
    running: Running
    worker: Worker

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.url.rpartition(":")[2])

    def client(self, **settings: Any) -> httpx.Client:
        """A client that waits long enough."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE, **settings)

    def complete(self, prompt: Any = "Once", **fields: Any) -> httpx.Response:
        """POST /v1/completions."""
        with self.client() as client:
            return client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 4, **fields})

    def raw(self, *sent: bytes, pause: float = 0.0) -> bytes:
        """What comes back for these bytes, up to the end of the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            for part in sent:
                try:
                    connection.sendall(part)
                except (BrokenPipeError, ConnectionResetError):
                    break
                time.sleep(pause)
            received = b""
            try:
                while part := connection.recv(65536):
                    received += part
            except ConnectionResetError:
                pass
            return received

    def figure(self, name: str, **labels: str) -> float:
        """A figure of /metrics; 0 for one that is not there."""
        with self.client() as client:
            text = client.get("/metrics").text
        found = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found)

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Until it is so."""
        deadline = time.monotonic() + PATIENCE
        while not ready():
            assert time.monotonic() < deadline
            time.sleep(0.005)


@contextmanager
def model_server(
    limits: Limits | None = None, access: Access | None = None, engine: type[Engine] = Engine, name: str = "tiny"
) -> Iterator[ModelServer]:
    """A server from here to the end of the block."""
    limits = limits or Limits(streams=4, queue=64, max_new_tokens=10_000, grace=0.0)
    model, metrics, tokenizer = tiny_model(), Metrics(), byte_tokenizer()
    worker = Worker(lambda: engine(model, limits.streams), limits, metrics)
    served = Served(name, tokenizer, CONFIG.block_size)
    app = make_app(served, worker, limits, metrics, access or Access(), log=False)
    ready = threading.Event()
    with listen("127.0.0.1", 0) as listener:
        url = address_of(listener)
        running = Running(app, worker, limits, ready.set)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(PATIENCE)
            yield ModelServer(url, running, worker)
        finally:
            running.stop()
            thread.join(PATIENCE)
        assert not thread.is_alive()


def chunks(response: httpx.Response) -> list[Any]:
    """The data of a stream's events, without the last one, which must be [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]

"""Networks that are not there."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Refused = Callable[..., None]
Run = Callable[..., Any]


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing fetched before is at hand, and nobody has said that there is no network."""
    import datasets
    import huggingface_hub.constants
    import tiktoken.registry

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))


@pytest.mark.parametrize("kind", ["no name server", "refused", "never answered"])
@pytest.mark.parametrize(
    "command", [["prepare", "hub", "someone/stories", "--out", "new"], ["train", "tinystories-cpu"]]
)
@pytest.mark.usefixtures("no_cache")
def test_the_hub_without_a_network(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: list[str], kind: str
) -> None:
    import huggingface_hub.constants

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        if kind == "never answered":
            listening.listen()
        if kind != "no name server":  # the tests' own guard refuses every name
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        before = sorted(here.rglob("*"))
        began = time.perf_counter()
        ended = run(*command)
        assert time.perf_counter() - began < 15
    assert ended.code == 3
    message = ended.err.splitlines()[-1]
    for word in ("the hub cannot be reached", "smallgpt prepare demo", "prepare text", "HF_ENDPOINT"):
        assert word in message
    assert "Traceback" not in ended.err
    assert sorted(here.rglob("*")) == before


@pytest.mark.usefixtures("no_cache")
def test_the_hub_without_a_network_as_a_process(here: Path, start: Callable[..., Any], tmp_path: Path) -> None:
    places = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    process = start("prepare", "hub", "someone/stories", "--out", "new", **places)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines()] == ["loading someone/stories", "smallgpt"]
    assert not Path("new").exists()


@pytest.mark.usefixtures("no_cache")
def test_the_gpt2_tokenizer_without_a_network(here: Path, refused: Refused) -> None:
    command = ["prepare", "text", "stories.txt", "--tokenizer", "gpt2", "--out", "new"]
    began = time.perf_counter()
    refused(command, 3, "tiktoken", "--tokenizer bpe or bytes", "TIKTOKEN_CACHE_DIR")
    assert time.perf_counter() - began < 15

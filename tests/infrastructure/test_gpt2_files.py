"""GPT-2's two files: fetched, checked and kept where tiktoken looks; or one line that says how to go on without."""

import socket
import time
from collections.abc import Iterator
from hashlib import sha1, sha256
from pathlib import Path

import pytest

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure import gpt2_files, retrying
from smallgpt.infrastructure.gpt2_files import ADDRESS, Gpt2File, cache_folder, provide_gpt2_files
from tests.loopback.server import NOT_FOUND, Answer, Fault, Loopback

CONTENT = {"vocab.bpe": b"#version: 0.2\nt h\nth e\n" * 40, "encoder.json": b'{"the": 0}' * 40}
HTML = b"<html><body>Please sign in</body></html>"


class Files(Loopback):
    """A host of the two files."""

    def answer(self, path: str) -> Answer:
        content = CONTENT.get(path.strip("/"))
        return NOT_FOUND if content is None else Answer(200, content)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tiktoken keeps files, empty; two small files stand for GPT-2's."""
    small = tuple(Gpt2File(name, sha256(content).hexdigest()) for name, content in CONTENT.items())
    monkeypatch.setattr(gpt2_files, "FILES", small)
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def host() -> Iterator[Files]:
    server = Files()
    with server.running():
        yield server


def provide(host: Files) -> list[str]:
    """What was told while the files were fetched."""
    told: list[str] = []
    provide_gpt2_files(lambda _done, _of, what, _details="": told.append(what), host.address + "/")
    return told


def kept(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


def cached_name(name: str) -> str:
    return sha1((ADDRESS + name).encode()).hexdigest()


EXPECTED = {cached_name(name): content for name, content in CONTENT.items()}


def test_both_files_are_fetched_once(host: Files, cache: Path) -> None:
    assert provide(host) == ["fetching GPT-2's vocab.bpe", "fetching GPT-2's encoder.json"]
    assert kept(cache) == EXPECTED
    assert provide(host) == []
    assert len(host.requests) == 2


def test_a_proxy_is_asked_where_one_is_named(host: Files, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", host.address)
    provide_gpt2_files(address="http://files.example/")
    assert host.requests == ["GET /vocab.bpe", "GET /encoder.json"]
    assert kept(cache) == EXPECTED


def test_names_and_checksums_are_tiktokens() -> None:
    import inspect
    from importlib import import_module

    source = inspect.getsource(import_module("tiktoken_ext.openai_public").gpt2)
    for file in gpt2_files.FILES:
        assert f'"{ADDRESS}{file.name}"' in source
        assert file.sha256 in source


def test_the_cache_is_where_tiktoken_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", "other")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "mine")
    assert cache_folder() == Path("mine")
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    assert cache_folder() == Path("other")
    monkeypatch.delenv("DATA_GYM_CACHE_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder() == tmp_path / "data-gym-cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert cache_folder() is None


def test_files_of_the_release_serve_under_their_own_names(host: Files, cache: Path) -> None:
    cache.mkdir()
    for name, content in CONTENT.items():
        (cache / name).write_bytes(content)
    assert provide(host) == []
    assert kept(cache) == {**CONTENT, **EXPECTED}


def test_a_damaged_cache_is_mended(host: Files, cache: Path) -> None:
    cache.mkdir()
    (cache / cached_name("vocab.bpe")).write_bytes(CONTENT["vocab.bpe"][:-1])
    provide(host)
    assert kept(cache) == EXPECTED


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("vocab", 1, Answer(429, b"", {"Retry-After": "0"})), "asks to wait 0 s (429), attempt 2 of 5"),
        (Fault("vocab", 2, Answer(503)), "fails (503), waiting 0 s, attempt 3 of 5"),
        (Fault("vocab", 1, cut=100), "attempt 2 of 5"),
        (Fault("vocab", 1, body=b"t h"), "fails (its checksum is wrong), waiting 0 s, attempt 2 of 5"),
        (Fault("vocab", 1, body=HTML), "fails (an HTML page came instead), waiting 0 s, attempt 2 of 5"),
    ],
)
def test_a_passing_fault_changes_nothing(host: Files, cache: Path, fault: Fault, said: str) -> None:
    host.faults = [Fault(fault.where, fault.times, fault.answer, fault.body, fault.cut)]
    assert said in "\n".join(provide(host))
    assert kept(cache) == EXPECTED


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("encoder", answer=NOT_FOUND), "the server answers 404"),
        (Fault("encoder", answer=Answer(403)), "the server answers 403"),
        (Fault("encoder", answer=Answer(500)), "500"),
        (Fault("encoder", answer=Answer(429, b"", {"Retry-After": "7200"})), "429, try again in 7200 s"),
        (Fault("encoder", cut=100), "IncompleteRead"),
        (Fault("encoder", body=HTML), "an HTML page came instead"),
        (Fault("encoder", body=b"?" * 5_000), "more than 4,000 bytes came"),
        (Fault("encoder", silent=True), "timed out"),
        (Fault("encoder", seconds_a_byte=0.02), "bytes in 0 s"),
    ],
)
def test_what_does_not_pass_names_the_ways_out(
    host: Files, cache: Path, fault: Fault, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TIME_OUT": 0.1, "PATIENCE": 0.2, "LARGEST": 4_000}.items():
        monkeypatch.setattr(gpt2_files, name, value)
    monkeypatch.setattr(retrying, "ATTEMPTS", 2)
    host.faults = [fault]
    words = r"GPT-2 tokenizer .*encoder\.json could not be fetched .*--tokenizer bpe or bytes.*TIKTOKEN_CACHE_DIR"
    with pytest.raises(DataError, match=words) as caught:
        provide(host)
    assert said in str(caught.value)
    assert kept(cache) == {cached_name("vocab.bpe"): CONTENT["vocab.bpe"]}


@pytest.mark.parametrize("address", ["https://no.such.host/", "refused"])
def test_without_a_network_nobody_waits(cache: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_WAIT", 10)
    if address == "refused":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    began = time.perf_counter()
    with pytest.raises(DataError, match="--tokenizer bpe"):
        provide_gpt2_files(address=address)
    assert time.perf_counter() - began < 5
    assert not cache.exists()


def test_a_cache_that_cannot_be_written(host: Files, tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be kept in tiktoken's cache .*TIKTOKEN_CACHE_DIR .*--tokenizer bpe"):
        provide(host)

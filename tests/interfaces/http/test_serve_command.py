"""`smallgpt serve` refuses what cannot be, before it serves anything."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loopback.model_server import write_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMALLGPT_API_KEY", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(write_model(tmp_path / "tiny"))


def test_a_port_in_use_is_two_lines(run: Run, folder: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, out, err = run("serve", folder, "--port", str(port))
    assert (code, out) == (2, "")
    assert err == (
        f"smallgpt: port {port} of 127.0.0.1 is in use\nGive another one, or --port 0 for any that is free.\n"
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "-1"], "port is -1"),
        (["--port", "65536"], "port is 65536"),
        (["--port", "80.5"], "not a whole number"),
        (["--host", "no.such.host.invalid"], "an API key"),
        (["--host", "0.0.0.0"], "needs an API key"),
        (["--host", "::"], "needs an API key"),
        (["--host", ""], "needs an API key"),
        (["--host", "192.0.2.1"], "needs an API key"),
        (["--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is empty or not set"),
        (["--allow-host", "stories.example.org"], "allow-host stories.example.org lets others"),
        (["--allow-host", "localhost", "192.0.2.1"], "which needs an API key"),
        (["--allow-origin", "example.org"], "allow-origin is 'example.org'"),
        (["--allow-origin", "https://example.org/page"], "give scheme and host"),
        (["--allow-origin", "*"], "give scheme and host"),
        (["--streams", "0"], "streams is 0; it must be 1 or more"),
        (["--queue", "0"], "queue is 0"),
        (["--max-new-tokens", "0"], "max-new-tokens is 0"),
        (["--timeout", "0"], "timeout is 0.0"),
        (["--timeout", "nan"], "timeout is nan"),
        (["--grace", "-1"], "grace is -1.0"),
        (["--past-block", "forget"], "past-block"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_a_flag_that_cannot_be(run: Run, folder: str, flags: list[str], words: str) -> None:
    code, out, err = run("serve", folder, *flags)
    assert code in (2, 6)
    assert out == ""
    assert words in err
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_this_machines(
    run: Run, folder: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLGPT_API_KEY", "key")
    code, _, err = run("serve", folder, "--host", host)
    assert code == 2
    assert host in err
    assert "an address of this machine" in err


def test_a_model_without_a_tokenizer(run: Run, folder: str) -> None:
    (Path(folder) / "tokenizer.json").unlink()
    code, _, err = run("serve", folder, "--port", "0")
    assert code == 4
    assert "has no tokenizer.json" in err


def test_a_run_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, _, err = run("serve", str(tmp_path / "nothing"), "--port", "0")
    assert code == 4
    assert "is not there" in err


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_named_with_its_remedy(
    run: Run, folder: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run("serve", folder, "--port", "0")
    assert code == 2
    assert err == f"smallgpt: serve needs {package}, which is not here: pip install 'smallgpt[serve]'\n"

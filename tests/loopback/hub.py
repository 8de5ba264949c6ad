"""As much of the Hugging Face hub as its own client asks for when it reads a dataset or a model."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pyarrow
import pyarrow.parquet
import pytest

from tests.loopback.server import Answer, Loopback

LARGE = 200
"""Bytes from which on a file is stored with its SHA-256, as the hub does from megabytes on."""


class Hub(Loopback):
    """One dataset or model, OWNER/NAME, with one commit on "main"."""

    def __init__(self, name: str, files: Mapping[str, bytes], kind: Literal["datasets", "models"] = "datasets") -> None:
        super().__init__()
        self.name, self.files = name, dict(files)
        self.api = f"/api/{kind}/{name}"
        self.page = f"/{name}" if kind == "models" else f"/{kind}/{name}"

    @property
    def commit(self) -> str:
        """Another one for other files."""
        content = [(path, hashlib.sha256(body).hexdigest()) for path, body in sorted(self.files.items())]
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()

    def answer(self, path: str) -> Answer:
        """See Loopback."""
        if path == "/":
            return Answer(body=b"a hub")
        for start, answer in (
            (f"{self.api}/tree/", self._tree),
            (f"{self.api}/revision/", self._info),
            (f"{self.page}/resolve/", self._file),
        ):
            if path.startswith(start):
                revision, _, rest = path.removeprefix(start).partition("/")
                if revision not in ("main", self.commit):
                    return error(404, "RevisionNotFound")
                return answer(rest)
        if path == self.api:
            return self._info("")
        return error(404, "RepoNotFound")

    def locked(self) -> Answer:
        """The hub does not tell whether a private dataset is there."""
        return error(401, "RepoNotFound")

    def _info(self, _: str) -> Answer:
        siblings = [{"rfilename": path} for path in self.files]
        facts = {"id": self.name, "sha": self.commit, "siblings": siblings, "private": False, "disabled": False}
        return _json({**facts, "gated": False, "downloads": 0, "likes": 0, "tags": []})

    def _tree(self, folder: str) -> Answer:
        return _json([_entry(path, body) for path, body in self.files.items() if path.startswith(folder)])

    def _file(self, path: str) -> Answer:
        if path not in self.files:
            return error(404, "EntryNotFound", {"X-Repo-Commit": self.commit})
        body = self.files[path]
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{git_id(body)}"', "Accept-Ranges": "bytes"}
        if len(body) >= LARGE:
            digest = hashlib.sha256(body).hexdigest()
            headers |= {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(body))}
        return Answer(200, body, headers)


def error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Answer:
    """The hub's way to say what is wrong: GatedRepo, RepoNotFound, EntryNotFound, RevisionNotFound."""
    return Answer(status, b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": "no", **(headers or {})})


def git_id(body: bytes) -> str:
    """Git's name for a content."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _entry(path: str, body: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(body), "oid": git_id(body)}
    if len(body) >= LARGE:
        entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
    return entry


def _json(value: object) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def parquet(texts: Sequence[str | None], column: str = "text") -> bytes:
    """A file of one column."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({column: texts}), buffer)
    return buffer.getvalue()


@contextmanager
def hub_of_this_process(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub's client in this process asks `hub`, keeps what it gets in `home`, and waits milliseconds, not seconds."""
    import datasets
    import huggingface_hub.constants

    from smallgpt.infrastructure import retrying

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    address = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)
    with hub.running():
        yield hub

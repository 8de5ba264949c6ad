"""A folder behind a URL: what is tried again, what is not, and what is said."""

import errno
import sys
from pathlib import Path

import pytest

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.object_store import Store
from smallgpt.infrastructure.retrying import ATTEMPTS
from tests.faulty_store import FaultyStore, fail_on, stored

pytestmark = pytest.mark.usefixtures("faulty")


@pytest.fixture(params=["faulty://bucket/a [1]*", "memory://bucket-{id}/a", "file://{tmp}/bucket/a"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same of three kinds; the first one's name would be a pattern, if anybody took it for one."""
    return Store(request.param.format(tmp=tmp_path, id=tmp_path.name), DataError)


def test_what_is_put_can_be_fetched_listed_and_removed(store: Store, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.write_bytes(b"x" * 1000)
    told: list[int] = []
    assert store.read("one/file") is None
    assert store.folders() == []
    assert not store.fetch("one/file", tmp_path / "there", told.append)
    store.put(here, "one/file")
    store.write("one/small", b"first")
    store.write("one/small", b"second")
    store.write("two/small", b"")
    assert store.folders() == ["one", "two"]
    assert store.read("one/small") == b"second"
    assert store.inside("one").fetch("file", tmp_path / "there", told.append)
    assert (tmp_path / "there").read_bytes() == here.read_bytes()
    store.remove_folder("one", first="small")
    store.remove_folder("one", first="small")
    assert store.folders() == ["two"]


def test_a_folder_loses_its_first_file_first(faulty: type[FaultyStore]) -> None:
    store = Store("faulty://bucket", DataError)
    for name in ("a", "manifest.json", "z"):
        store.write(f"folder/{name}", b"")
    store.remove_folder("folder", first="manifest.json")
    assert next(path for what, path in faulty.asked if what == "rm").endswith("manifest.json")
    assert stored("bucket") == {}


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("cut"), TimeoutError("slow"), OSError(errno.EBUSY, "SlowDown"), EOFError("cut")],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_is_tried_again(error: Exception, faulty: type[FaultyStore]) -> None:
    store = Store("faulty://bucket", DataError)
    store.write("file", b"content")
    faulty.rule.append(fail_on("cat", "file", error, ATTEMPTS - 1))
    assert store.read("file") == b"content"
    faulty.rule[:] = [fail_on("cat", "file", error)]
    faulty.asked.clear()
    with pytest.raises(DataError, match=r"faulty://bucket/file: .*, again and again; try again when the store answers"):
        store.read("file")
    assert len(faulty.asked) == ATTEMPTS


class CredentialRetrievalError(Exception):
    """As botocore calls it."""


class AnswerError(Exception):
    """As HTTP libraries have it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}, url='sftp://me:secret@host/file?X-Amz-Signature=secret'")
        self.status = status


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("Forbidden"), "access denied (Forbidden); check the credentials"),
        (CredentialRetrievalError("none"), "access denied (none); check the credentials"),
        (AnswerError(403), "access denied (status 403, url='sftp://host/file); check the credentials"),
        (AnswerError(404), "not there (404); check the bucket and the folder"),
        (OSError(errno.ENOSPC, "No space left"), "No space left; mend that"),
    ],
)
def test_what_does_not_pass_is_said_at_once_and_without_secrets(
    error: Exception, words: str, faulty: type[FaultyStore]
) -> None:
    store = Store("faulty://me:secret@bucket", DataError)
    faulty.rule.append(fail_on("cat", "file", error))
    with pytest.raises(DataError) as raised:
        store.read("file")
    assert words in str(raised.value).replace("[Errno 28] ", "")
    assert "secret" not in str(raised.value)
    assert len(faulty.asked) == 1


def test_an_error_of_our_own_is_not_hidden(faulty: type[FaultyStore]) -> None:
    faulty.rule.append(fail_on("cat", "file", TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        Store("faulty://bucket", DataError).read("file")


def test_half_a_file_is_put_again(faulty: type[FaultyStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.write_bytes(b"x" * 10)
    put, cuts = FaultyStore.put_file, [3]

    def cut(self: FaultyStore, lpath: str, rpath: str, **options: object) -> None:
        put(self, lpath, rpath)
        if cuts.pop():
            self.store[rpath].truncate(4)

    monkeypatch.setattr(FaultyStore, "put_file", cut)
    cuts[:] = [0, 1]
    store = Store("faulty://bucket", DataError)
    store.put(here, "file")
    assert stored("bucket") == {"file": b"x" * 10}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/stories", "s3://... needs the package s3fs: pip install s3fs"),
        ("gs://bucket/stories", "gs://... needs the package gcsfs: pip install gcsfs"),
        ("az://box/stories", "az://... needs the package adlfs: pip install adlfs"),
        ("s4://me:secret@bucket", "s4://bucket: Protocol not known: s4; it is like s3://bucket/folder"),
    ],
)
def test_what_is_missing_for_a_url_is_named(url: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for absent in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ConfigError) as raised:
        Store(url, DataError)
    assert str(raised.value).startswith(words)

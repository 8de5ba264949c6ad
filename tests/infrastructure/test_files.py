"""Files and folders that appear whole or not at all."""

import hashlib
import os
from pathlib import Path

import pytest

from smallgpt.infrastructure import files
from smallgpt.infrastructure.files import folder_written_whole, sha256, write_atomically, write_json


class RefusedError(OSError):
    pass


def refuse(*_: object, **__: object) -> None:
    raise RefusedError


def interrupted_write(target: Path) -> None:
    with folder_written_whole(target) as draft:
        (draft / "a").write_text("half")
        raise KeyboardInterrupt


def test_a_files_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_small_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            with pytest.raises(RefusedError):
                write_atomically(path, "new")
        assert path.read_text() == '{\n  "a": 1\n}\n'
        assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_appears_when_it_is_full(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with folder_written_whole(target) as draft:
        (draft / "a").write_text("new")
        assert not target.exists()
        assert draft.parent == target.parent, "a rename from elsewhere would be a copy"
    assert (target / "a").read_text() == "new"
    assert os.listdir(target.parent) == ["folder"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    rename = Path.rename

    def noted_rename(self: Path, to: Path) -> Path:
        events.append("rename")
        return rename(self, to)

    monkeypatch.setattr(files, "sync", lambda path: events.append(path.name.split(".")[-1]))
    monkeypatch.setattr(Path, "rename", noted_rename)
    with folder_written_whole(tmp_path / "folder") as draft:
        (draft / "a").write_text("a")
        (draft / "b").write_text("b")
    assert sorted(events[:2]) == ["a", "b"]
    assert events[2:] == ["tmp", "rename", tmp_path.name]


@pytest.mark.parametrize("existing", [False, True])
def test_an_error_inside_leaves_everything_as_it_was(tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "folder"
    if existing:
        target.mkdir()
        (target / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(target)
    assert os.listdir(tmp_path) == (["folder"] if existing else [])
    assert not existing or os.listdir(target) == ["old"]


@pytest.mark.parametrize("refused", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """Replacing takes two renames: the old one away, the new one in."""
    target, calls, rename = tmp_path / "folder", [0], Path.rename
    target.mkdir()
    (target / "old").write_text("old")

    def failing(self: Path, to: Path) -> Path:
        calls[0] += 1
        if calls[0] == refused:
            raise RefusedError
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(RefusedError), folder_written_whole(target) as draft:
        (draft / "a").write_text("new")
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["folder"]

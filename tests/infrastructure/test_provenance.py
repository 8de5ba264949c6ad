"""Where a figure comes from."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smallgpt.infrastructure import provenance as module
from smallgpt.infrastructure.provenance import command, commit, provenance, record

PACKAGE = Path(module.__file__).resolve().parents[1]


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A repository whose src is taken for the package."""
    (tmp_path / "src/infrastructure").mkdir(parents=True)
    (tmp_path / "src/__init__.py").write_text("")
    git(tmp_path, "init", "--quiet")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "src/infrastructure/provenance.py"))
    return tmp_path


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    return subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True).stdout


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@needs_git
def test_the_commit_is_that_of_the_packages_own_checkout_and_says_where_files_differ(checkout: Path) -> None:
    assert commit() == "unknown"  # a repository around it, that does not know it
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "first")
    short = git(checkout, "rev-parse", "--short", "HEAD").strip()
    assert commit() == short
    (checkout / "elsewhere.txt").write_text("the package's files are the same")
    assert commit() == short
    (checkout / "src/__init__.py").write_text("changed = True")
    assert commit() == f"{short}+changes"


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"


def test_command_machine_and_versions_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/bin/smallgpt", "bench", "a b"])
    found = provenance()
    assert list(found) == ["command", "machine", "versions", "commit"]
    assert found["command"] == "smallgpt bench 'a b'"
    assert f"torch {torch.__version__}" in found["versions"]
    assert "threads" in found["machine"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (PACKAGE / "__main__.py", "smallgpt train demo"),
        (PACKAGE.parent / "tests" / "benchmarks" / "x.py", "python tests/benchmarks/x.py train demo"),
        (Path("/elsewhere/x.py"), "x.py train demo"),
    ],
    ids=["module", "script", "foreign"],
)
def test_a_command_can_be_typed_again(script: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "train", "demo"])
    assert command() == words


def test_a_record_has_settings_rows_and_a_date() -> None:
    made = record({"n_layer": 2}, [{"system": "ours"}])
    assert made["settings"] == {"n_layer": 2}
    assert made["rows"] == [{"system": "ours"}]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["provenance"].pop("date"))
    assert made["provenance"] == provenance()

"""Where a figure comes from: command, machine, versions and commit, printed with every benchmark."""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smallgpt.infrastructure import hardware


def provenance() -> dict[str, str]:
    """command, machine, versions and commit of this process, in words."""
    found = hardware.versions()
    versions = [f"{name} {found[name]}" for name in ("python", "torch", "triton")]
    return {
        "command": command(),
        "machine": machine(),
        "versions": ", ".join(versions),
        "commit": commit(),
    }


def record(settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures as they are kept in docs/benchmarks: rows, the settings they share, and where and when (UTC) they were made."""
    made = {**provenance(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    return {"provenance": made, "settings": dict(settings), "rows": list(rows)}


def command() -> str:
    """The words that started this process, a script of the checkout by its path there."""
    script, *arguments = sys.argv
    path, package = Path(script).resolve(), Path(__file__).resolve().parents[1]
    if path == package / "__main__.py":  # python -m smallgpt
        return shlex.join(["smallgpt", *arguments])
    if path.suffix == ".py" and path.is_relative_to(package.parent):
        return shlex.join(["python", str(path.relative_to(package.parent)), *arguments])
    return shlex.join([path.name, *arguments])


def machine() -> str:
    """Processor, the threads this process may use, and GPUs."""
    here = hardware.hardware()
    gpus = [f"{gpu.name} (capability {gpu.capability}, {gpu.memory_bytes / 2**30:.0f} GiB)" for gpu in here.gpus]
    return "; ".join([f"{here.processor}, {here.usable_threads} threads", *gpus])


def commit() -> str:
    """The short hash of the checkout that the package lies in, "+changes" where its files differ from it, or "unknown"."""
    source = Path(__file__).resolve().parents[1]
    if _git(source, "ls-files", "--error-unmatch", "__init__.py") is None:  # installed, maybe inside another checkout
        return "unknown"
    changed = _git(source, "status", "--porcelain", "--", ".")
    return f"{_git(source, 'rev-parse', '--short', 'HEAD')}{'+changes' if changed else ''}"


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

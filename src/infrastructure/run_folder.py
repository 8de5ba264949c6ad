"""A run on disk: config.toml, metrics.jsonl, checkpoints/, report.html, and a lock held while it is written."""

import fcntl
import json
import os
import tomllib
from pathlib import Path
from typing import IO, Any

import tomli_w
from pydantic import ValidationError

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.files import write_atomically


class RunFolder:
    """Reads a run; see `open_for_writing` for the other half."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints_folder(self) -> Path:
        return self.path / "checkpoints"

    def config(self) -> RunConfig:
        """The resolved configuration. Raises CheckpointError when this is no run or its configuration is damaged."""
        try:
            return RunConfig.model_validate(tomllib.loads(self.config_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.path} is no run: it has no config.toml; name a folder that `smallgpt train` made."
            ) from None
        except (tomllib.TOMLDecodeError, ValidationError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.config_file} cannot be read: {str(error).splitlines()[0]}") from None

    def write_config(self, config: RunConfig) -> None:
        """Save every setting; absent values are left out, since TOML has no null."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config_file, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))

    def metrics(self) -> list[dict[str, Any]]:
        """Every event, oldest first; a last line that a crash cut short is left out."""
        if not self.metrics_file.exists():
            return []
        events = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return events

    def forget_after(self, step: int) -> None:
        """Drop the events that a run resumed at `step` will write again."""
        again = {"validation", "sample", "end"}
        kept = [e for e in self.metrics() if e["step"] < step or (e["step"] == step and e["event"] not in again)]
        write_atomically(self.metrics_file, "".join(json.dumps(e) + "\n" for e in kept))

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, oldest first; unfinished ones have other names."""
        return sorted(self.checkpoints_folder.glob("step-*"))

    def lock(self) -> IO[str]:
        """Hold the run for writing until the returned file is closed or this process ends, however it ends.

        Raises CheckpointError when another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise CheckpointError(
                f"{self.path} is in use by {holder}. Wait for it, or train into another folder with --out."
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        return file

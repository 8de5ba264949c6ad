"""A run on disk: config.toml, metrics.jsonl, checkpoints/, report.html, and a lock held while it is written."""

import json
import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.files import write_atomically
from smallgpt.infrastructure.run_lock import RunLock, holder_of


class RunFolder:
    """Reads a run; see `open_for_writing` for the other half."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: RunLock | None = None

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
        except (tomllib.TOMLDecodeError, ValidationError, UnicodeDecodeError, RecursionError) as error:
            raise CheckpointError(f"{self.config_file} cannot be read: {str(error).splitlines()[0]}") from None

    def write_config(self, config: RunConfig) -> None:
        """Save every setting that says something of the run; absent values are left out, since TOML has no null."""
        values = config.model_dump(mode="json", exclude_none=True)
        if config.data.corpus is None:  # a folder has a tokenizer of its own; these two are for a corpus to prepare
            del values["data"]["tokenizer"], values["data"]["vocab_size"]
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config_file, tomli_w.dumps(values))

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
        if not self.metrics_file.exists():
            return
        again = {"validation", "sample", "end"}
        kept = [e for e in self.metrics() if e["step"] < step or (e["step"] == step and e["event"] not in again)]
        write_atomically(self.metrics_file, "".join(json.dumps(e) + "\n" for e in kept))

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, oldest first; unfinished ones have other names."""
        return sorted(self.checkpoints_folder.glob("step-*"))

    def lock(self, launch: str | None = None, patience: float = 0.0) -> RunLock:
        """Hold the run for writing until the returned lock is closed or this process ends, however it ends. See RunLock.

        Raises CheckpointError when another process holds it.
        """
        self._held = RunLock(self.path, launch, patience)
        return self._held

    def check_held(self) -> None:
        """Raises CheckpointError when a later round of the launch that holds the run has taken it over."""
        if self._held is not None:
            self._held.check()

    def launch(self) -> str:
        """The launch that wrote here last; "" where none did."""
        return holder_of(self.path)[2]

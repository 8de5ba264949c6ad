"""Where a run lives: a new folder, the one to go on in, or the one that an earlier round of the same launch made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.places import name_of
from smallgpt.interfaces.cli import settings

LEFTOVERS = ("lock", "config.toml", "tensorboard")
"""What a run leaves that failed before its first line."""


@dataclass(frozen=True)
class RunPlace:
    """The run folder, and what is there."""

    folder: Path
    resumes: bool
    """Does a run go on in it: because that was asked for, or because torchrun started it again?"""
    source: str | None = None
    """The URL of the run that has to be fetched into it first."""


def run_place(preset: str | None, config: RunConfig, out: Path | None, resume: Path | str | None) -> RunPlace:
    """Where the run lives. Raises ConfigError for a folder that is taken, before anything is computed."""
    if isinstance(resume, Path):
        if out is not None:
            raise ConfigError(f"--resume goes on in {resume}; leave --out {out} out")
        return RunPlace(resume, resumes=True)
    if resume is None and not config.data.folders and config.data.corpus is None:
        presets = ", ".join(settings.preset_names())
        raise ConfigError(
            f"nothing to train on: name a preset ({presets}),\nor give --data FOLDER, made by `smallgpt prepare`"
        )
    spared = LEFTOVERS if resume is None else ("lock",)  # a run that is fetched takes the place of the whole folder
    folder = out or _first_free(Path("runs") / _name(preset, config, resume), spared)
    if _is_taken(folder, spared):
        resumable = any((folder / "checkpoints").glob("step-*"))
        how = (
            f"`smallgpt train --resume {folder}` goes on with it" if resumable else "it has no checkpoint to go on from"
        )
        raise ConfigError(f"{folder} is there already; {how}.\nFor a new run choose another folder with --out.")
    return RunPlace(folder, resumes=resume is not None, source=resume)


def place_of_launch(preset: str | None, config: RunConfig, out: Path | None, resume: Path | str | None) -> RunPlace:
    """run_place of a launch of several processes, which may be started again."""
    from smallgpt.interfaces.launch import run_of_this_launch

    if not isinstance(resume, Path):
        name = _name(preset, config, resume)
        again = run_of_this_launch([out] if out is not None else sorted(Path("runs").glob(f"{name}*")))
        if again is not None:
            return RunPlace(again, resumes=any((again / "checkpoints").glob("step-*")))
    return run_place(preset, config, out, resume)


def _name(preset: str | None, config: RunConfig, resume: str | None) -> str:
    if resume is not None:
        return name_of(resume)
    return preset or "-".join(name_of(folder) for folder in config.data.folders) or str(config.data.corpus)


def _first_free(run: Path, spared: Sequence[str]) -> Path:
    """runs/demo, else runs/demo-2, runs/demo-3, ..."""
    number = 1
    while _is_taken(free := run if number == 1 else run.with_name(f"{run.name}-{number}"), spared):
        number += 1
    return free


def _is_taken(run: Path, spared: Sequence[str]) -> bool:
    """Is anything there but what may be lost?"""
    if not run.exists():
        return False
    return not run.is_dir() or any(path.name not in spared for path in run.iterdir())

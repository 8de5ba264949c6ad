"""`smallgpt train`: settings, data and a run folder together, then the loop, then where everything is."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces.cli import settings
from smallgpt.interfaces.cli.flags import Whole

if TYPE_CHECKING:
    from smallgpt.application.training import Outcome
    from smallgpt.interfaces.cli.display import Display
    from smallgpt.interfaces.phases import Phases

TrackerName = Literal["tensorboard", "trackio", "wandb"]


@settings.with_setting_flags
def train(
    preset: str | None = None,
    /,
    *,
    config: Path | None = None,
    data: Annotated[tuple[str, ...], Parameter(negative="", show_default=False, metavar="FOLDER")] = (),
    out: Path | None = None,
    resume: Path | None = None,
    track: Annotated[tuple[TrackerName, ...], Parameter(negative="", show_default=False)] = (),
    profile: Annotated[Whole | None, Parameter(validator=Number(gte=1))] = None,
    **flags: Any,
) -> int:
    """Train a model, or go on with a run.

    Presets: demo, gpt2-124m, seed, tinystories, tinystories-cpu.
    --config overrides a preset's values, and flags override both.
    A preset's corpus is prepared when it is missing. Ctrl-C saves and stops.

    Try:
      smallgpt train demo
      smallgpt train tinystories-cpu --training.max-minutes 10
      smallgpt train --data data/mine --model.n-layer 6 --track tensorboard
      smallgpt train --data data/stories=0.7 --data data/letters=0.3
      smallgpt train --config my.toml --out runs/first
      smallgpt train demo --training.max-steps 20 --profile 3
      smallgpt train --resume runs/first

    Args:
        preset: Settings that come with smallgpt.
        config: A TOML file with sections as below: [model], then n_layer = 6.
        data: Data folder made by `smallgpt prepare`; several are mixed by weight: --data FOLDER=WEIGHT for each.
        out: Run folder to make. Default: runs/ and the preset's or data folder's name, numbered when that is taken.
        resume: Run to go on with; its settings are the base, and flags change them.
        track: Log to this tracker too; may be repeated.
        profile: Record so many steps, after three: a trace and a table of operations in RUN/profile.
    """
    resolved = settings.resolve(*_layers(preset, config, resume, flags | _data_flags(data)))
    run = _run_folder(preset, resolved, out, resume)

    if profile is not None:  # the profiler reads it when torch is loaded, and else announces itself on stderr
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from smallgpt.infrastructure.token_store import open_store
    from smallgpt.interfaces import composition
    from smallgpt.interfaces.cli.display import Display, PatientConsole
    from smallgpt.interfaces.phases import Phases
    from smallgpt.interfaces.resuming import check_same_data
    from smallgpt.interfaces.signals import stop_signals

    phases = Phases.of_command()
    phases.end("imports")
    console = PatientConsole()
    folders = _data_folders(resolved, console, phases)
    vocab_size_given = "vocab_size" in resolved.model.model_fields_set
    store = open_store(*folders)
    _ = store.tokenizer  # a wrong one is noticed now, and not by the first sample
    if resume is not None:
        check_same_data(resolved, store)
    resolved = composition.resolve(resolved, store, vocab_size_given=vocab_size_given)
    phases.end("data")
    trackers = _open_trackers(track, run, resolved)
    if track:
        phases.end("trackers")
    with Display(console) as display, stop_signals() as stop:
        outcome = composition.train(
            resolved,
            store,
            run,
            resume=resume is not None,
            profile=profile or 0,
            trackers=[display, *trackers],
            should_stop=stop,
            warn=display.say,
            phases=phases,
        )
    _say_what_next(display, run, outcome, resolved.evaluation.prompt)
    return stop.exit_code if outcome.reason == "interrupted" else 0


def _layers(
    preset: str | None, config: Path | None, resume: Path | None, flags: dict[str, Any]
) -> Iterator[settings.Layer]:
    if resume is not None and preset is not None:
        raise ConfigError(f"--resume takes its settings from {resume}; leave the preset {preset!r} out")
    if resume is not None:
        yield settings.run_layer(resume)
    if preset is not None:
        yield settings.preset_layer(preset)
    if config is not None:
        yield settings.file_layer(config)
    yield settings.flag_layer(flags)


def _run_folder(preset: str | None, config: RunConfig, out: Path | None, resume: Path | None) -> Path:
    """Where the run lives. Raises ConfigError for a folder that is taken, before anything is computed."""
    if resume is not None:
        if out is not None:
            raise ConfigError(f"--resume goes on in {resume}; leave --out {out} out")
        return resume
    if not config.data.folders and config.data.corpus is None:
        presets = ", ".join(settings.preset_names())
        raise ConfigError(
            f"nothing to train on: name a preset ({presets}),\nor give --data FOLDER, made by `smallgpt prepare`"
        )
    name = preset or "-".join(folder.name for folder in config.data.folders) or str(config.data.corpus)
    if out is None:
        return _first_free(Path("runs") / name)
    if _is_taken(out):
        resumable = any((out / "checkpoints").glob("step-*"))
        how = f"`smallgpt train --resume {out}` goes on with it" if resumable else "it has no checkpoint to go on from"
        raise ConfigError(f"{out} is there already; {how}.\nFor a new run choose another folder with --out.")
    return out


def _first_free(run: Path) -> Path:
    """runs/demo, else runs/demo-2, runs/demo-3, ..."""
    number = 1
    while _is_taken(free := run if number == 1 else run.with_name(f"{run.name}-{number}")):
        number += 1
    return free


def _is_taken(run: Path) -> bool:
    """Is there anything to lose? What a run leaves that failed before its first line is not."""
    if not run.exists():
        return False
    return not run.is_dir() or any(path.name not in ("lock", "config.toml", "tensorboard") for path in run.iterdir())


def _data_flags(data: tuple[str, ...]) -> dict[str, Any]:
    """--data as the settings it is short for."""
    match data:
        case ():
            return {}
        case (folder,):
            return {"data__path": folder}
        case _:
            return {"data__mixture": list(data)}


def _data_folders(config: RunConfig, console: Any, phases: "Phases") -> tuple[Path, ...]:
    """The data folders of a configuration; that of a corpus is prepared when it is missing."""
    if config.data.folders:
        return config.data.folders
    from smallgpt.interfaces.cli.preparing import corpus_folder, prepare_corpus

    folder = corpus_folder(config.data)
    if not folder.exists():
        prepare_corpus(config.data, folder, console)
        phases.end("preparing data")
    return (folder,)


def _open_trackers(names: tuple[TrackerName, ...], run: Path, config: RunConfig) -> list[Any]:
    from smallgpt.infrastructure.trackers import open_tracker

    return [open_tracker(name, run, config.model_dump(mode="json")) for name in dict.fromkeys(names)]


def _say_what_next(display: "Display", run: Path, outcome: "Outcome", prompt: str) -> None:
    if outcome.reason == "interrupted":
        display.say(f"stopped after step {outcome.step:,} and saved; go on with\n  smallgpt train --resume {run}")
        return
    from smallgpt.interfaces.report.page import write_report

    report = write_report(run)
    _tell_a_story(display, run, prompt)
    display.say(
        "\n".join(
            [
                f"trained  {outcome.step:,} steps in {outcome.seconds:.0f} s",
                f"run      {run} (checkpoints/, metrics.jsonl, config.toml)",
                f"report   {report}",
                "next",
                f'  smallgpt generate {run} --prompt "{prompt}"',
                f"  smallgpt evaluate {run}",
                f"  smallgpt doctor {run}",
            ]
        )
    )


def _tell_a_story(display: "Display", run: Path, prompt: str) -> None:
    """The finished model's continuation of the run's prompt, up to end-of-text."""
    from smallgpt.domain.sampling import Sampling
    from smallgpt.interfaces.continuing import Continuation, Continuer, Settings
    from smallgpt.interfaces.opening import open_model

    opened = open_model(run)
    if opened.tokenizer is not None:
        story = Continuation(prompt, seed=0)
        for _ in Continuer(opened).run([story], Settings(Sampling(temperature=0.5), max_new_tokens=400)):
            pass
        display.say(f"\n{prompt}{story.text}\n")

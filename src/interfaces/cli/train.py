"""`smallgpt train`: settings, data and a run folder together, then the loop, then where everything is."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.places import is_url, without_secrets
from smallgpt.interfaces.cli import settings
from smallgpt.interfaces.cli.flags import PlaceOf, Whole
from smallgpt.interfaces.cli.run_places import RunPlace, place_of_launch, run_place

if TYPE_CHECKING:
    from smallgpt.application.training import Outcome
    from smallgpt.domain.processes import Processes
    from smallgpt.interfaces.cli.display import Display
    from smallgpt.interfaces.opening import OpenedModel
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
    resume: PlaceOf | None = None,
    init: Annotated[str | None, Parameter(metavar="MODEL")] = None,
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
      smallgpt train --resume s3://bucket/runs/first --out runs/first
      smallgpt train --init runs/first --data data/letters --training.lora-rank 8

    Args:
        preset: Settings that come with smallgpt.
        config: A TOML file with sections as below: [model], then n_layer = 6.
        data: Data folder made by `smallgpt prepare`, or its URL; several are mixed by weight: --data FOLDER=WEIGHT for each.
        out: Run folder to make. Default: runs/ and the preset's or data folder's name, numbered when that is taken.
        resume: Run to go on with, or the URL of its mirror; its settings are the base, and flags change them.
        init: Model to start from instead of random weights: a run, or a folder or file of another tool.
        track: Log to this tracker too; may be repeated.
        profile: Record so many steps, after three: a trace and a table of operations in RUN/profile.
    """
    resolved = settings.resolve(*_layers(preset, config, resume, flags | _data_flags(data) | _init_flags(init)))
    if resolved.training.lora_rank is not None and resolved.training.init is None:
        raise ConfigError("training.lora_rank adds to a model that knows something: name one with --init")
    place = None
    if "RANK" not in os.environ:  # before anything is loaded; of several processes the first one chooses it later
        place = run_place(preset, resolved, out, resume)

    if profile is not None:  # the profiler reads it when torch is loaded, and else announces itself on stderr
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from smallgpt.infrastructure.run_folder import RunFolder
    from smallgpt.interfaces.launch import joined_processes
    from smallgpt.interfaces.phases import Phases

    phases = Phases.of_command()
    phases.end("imports")
    with joined_processes(resolved) as processes:
        first = processes.rank == 0
        place = place or processes.of_first(place_of_launch(preset, resolved, out, resume) if first else None)
        assert place is not None, "the first process has chosen it"
        if place.resumes and resume is None and resolved.training.init is not None:
            # a restart goes on from its checkpoint, and not from that model
            resolved = RunFolder(place.folder).config()
        return _train(resolved, place, track, profile or 0, processes, phases)


def _train(
    config: RunConfig,
    place: RunPlace,
    track: tuple[TrackerName, ...],
    profile: int,
    processes: "Processes",
    phases: "Phases",
) -> int:
    """The run itself, in each of its processes; the first one prepares data, and shows it."""
    from smallgpt.infrastructure.launches import launched
    from smallgpt.infrastructure.token_store import open_store
    from smallgpt.interfaces import composition
    from smallgpt.interfaces.cli.display import Display, PatientConsole
    from smallgpt.interfaces.resuming import check_same_data
    from smallgpt.interfaces.signals import stop_signals
    from smallgpt.interfaces.starting import check_data, with_model_of

    first, run, resumes = processes.rank == 0, place.folder, place.resumes
    console = PatientConsole(quiet=not first)
    if place.source is not None:
        _fetch_run(place.source, run, console, processes)
        phases.end("fetching the run")
    start = None if resumes else _start(config, console, processes)
    if start is not None:
        config = with_model_of(config, start)
        phases.end("model to start from")
    folders = _data_folders(config, console, phases, processes)
    vocab_size_given = start is not None or "vocab_size" in config.model.model_fields_set
    store = open_store(*folders)
    _ = store.tokenizer  # a wrong one is noticed now, and not by the first sample
    if resumes:
        check_same_data(config, store)
    if start is not None:
        check_data(store, start, str(config.training.init))
    config = composition.resolve(config, store, vocab_size_given=vocab_size_given)
    phases.end("data")
    trackers = _open_trackers(track, run, config) if first else []
    if track:
        phases.end("trackers")
    with Display(console) as display, stop_signals(launched=launched() is not None) as stop:
        outcome = composition.train(
            config,
            store,
            run,
            resume=resumes,
            start=start,
            profile=profile,
            trackers=[display, *trackers],
            should_stop=stop,
            warn=display.say,
            phases=phases,
            processes=processes,
        )
    if first:
        _say_what_next(display, run, outcome, config.evaluation.prompt)
    return stop.exit_code if outcome.reason == "interrupted" else 0


def _start(config: RunConfig, console: Any, processes: "Processes") -> "OpenedModel | None":
    """The model that training.init names; one on the hub is fetched by the first process alone."""
    if config.training.init is None:
        return None
    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.interfaces.starting import open_start

    with shown(console) as progress:
        start = open_start(config.training.init, progress) if processes.rank == 0 else None
    processes.wait_for_first()
    return start or open_start(config.training.init)


def _layers(
    preset: str | None, config: Path | None, resume: Path | str | None, flags: dict[str, Any]
) -> Iterator[settings.Layer]:
    if resume is not None and preset is not None:
        raise ConfigError(
            f"--resume takes its settings from {without_secrets(str(resume))}; leave the preset {preset!r} out"
        )
    if resume is not None:
        yield settings.run_layer(resume)
    file = None if config is None else settings.file_layer(config)
    if preset is not None:
        recipe = settings.preset_layer(preset)
        training = {} if file is None else file.values.get("training")
        if "training__init" in flags or (isinstance(training, dict) and "init" in training):
            recipe.values.pop("model", None)  # the sizes come from there
        yield recipe
    if file is not None:
        yield file
    yield settings.flag_layer(flags)


def _data_flags(data: tuple[str, ...]) -> dict[str, Any]:
    """--data as the settings it is short for."""
    match data:
        case ():
            return {}
        case (folder,):
            _check_no_weight(folder)
            return {"data__path": folder}
        case _:
            return {"data__mixture": list(data)}


def _check_no_weight(folder: str) -> None:
    """Raises ConfigError for FOLDER=WEIGHT, unless that is the name of a folder."""
    name, _, weight = folder.rpartition("=")
    if name and re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", weight) and not is_url(folder) and not Path(folder).exists():
        raise ConfigError(
            f"--data {folder}: a weight ({weight}) is a share among several folders, and this is one; say --data {name}, "
            "or give another --data FOLDER=WEIGHT"
        )


def _init_flags(init: str | None) -> dict[str, Any]:
    """--init as the setting it is short for."""
    return {} if init is None else {"training__init": init}


def _fetch_run(url: str, run: Path, console: Any, processes: "Processes") -> None:
    """The run at a URL as the run folder to go on in."""
    from smallgpt.infrastructure.copies import fetch_run
    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.interfaces.launch import launch_name

    if processes.rank == 0:
        with shown(console) as progress:
            fetch_run(url, run, progress, lambda words: progress(0, None, words), launch_name())
    processes.wait_for_first()


def _data_folders(config: RunConfig, console: Any, phases: "Phases", processes: "Processes") -> tuple[Path, ...]:
    """The data folders of a configuration on this machine; that of a corpus is prepared when it is missing."""
    from smallgpt.interfaces.cli.preparing import corpus_folder, prepare_corpus
    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.interfaces.places import at_hand

    places = config.data.folders or (corpus_folder(config.data),)
    if processes.rank == 0 and not config.data.folders and not Path(places[0]).exists():
        prepare_corpus(config.data, Path(places[0]), console)
        phases.end("preparing data")
    processes.wait_for_first()
    if not any(isinstance(place, str) for place in places):
        return processes.of_first(tuple(map(Path, places)))
    with shown(console) as progress:  # each machine has a cache of its own: one of its processes fetches, others wait
        folders = at_hand(places, progress)
    phases.end("fetching data")
    processes.wait_for_first()
    return folders


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
    from smallgpt.domain.errors import DataError
    from smallgpt.domain.sampling import Sampling
    from smallgpt.interfaces.continuing import Continuation, Continuer, Settings
    from smallgpt.interfaces.opening import open_model

    opened = open_model(run)
    if opened.tokenizer is not None:
        story = Continuation(prompt, seed=0)
        try:
            for _ in Continuer(opened).run([story], Settings(Sampling(temperature=0.5), max_new_tokens=400)):
                pass
        except DataError:  # a table of characters without one of the prompt's
            return
        display.say(f"\n{prompt}{story.text}\n")

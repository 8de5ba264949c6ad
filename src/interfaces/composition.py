"""The one place that knows every layer: from a configuration to a run."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from smallgpt.application.compiling import compile_blocks, keep_if_faster
from smallgpt.application.ports import Checkpoints, Tracker
from smallgpt.application.training import Loop, Outcome, plan_steps
from smallgpt.domain.config import DEFAULT_STEPS, RunConfig, WeightedFolder, padded_vocabulary, steps_of
from smallgpt.domain.errors import DataError
from smallgpt.domain.processes import ALONE, Processes
from smallgpt.domain.state import TrainingState
from smallgpt.domain.trainable import n_trained
from smallgpt.infrastructure import checkpoints, devices
from smallgpt.infrastructure.background_checkpoints import BackgroundCheckpoints
from smallgpt.infrastructure.mirror import Mirror
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.token_store import TokenStore
from smallgpt.infrastructure.trackers import JsonLines, Several
from smallgpt.interfaces.launch import launch_name, patience
from smallgpt.interfaces.machine import choose_machine
from smallgpt.interfaces.memory import RunMemory, explaining_shortage, settle
from smallgpt.interfaces.opening import OpenedModel
from smallgpt.interfaces.phases import Phases
from smallgpt.interfaces.resuming import Resumed, check_resumable, resumed
from smallgpt.interfaces.run_parts import RunParts, new_model, view_of

PROVISIONAL_STEPS = 1000  # of a schedule whose length is yet to be found


def resolve(config: RunConfig, store: TokenStore, *, vocab_size_given: bool) -> RunConfig:
    """The configuration with what the data decides filled in: the folders and, unless given, the vocabulary.

    Raises DataError when the model cannot hold the data's ids or a split is shorter than a block.
    """
    vocab_size = config.model.vocab_size if vocab_size_given else padded_vocabulary(store.vocab_size)
    if vocab_size < store.vocab_size:
        raise DataError(
            f"model.vocab_size ({vocab_size}) is smaller than the vocabulary of {store.name} ({store.vocab_size}); leave it out"
        )
    for split in ("train", "validation"):
        tokens = len(store.tokens(split))
        if tokens <= config.model.block_size:
            raise DataError(
                f"the {split} split of {store.name} has {tokens} tokens, and a block needs {config.model.block_size + 1}; "
                "lower --model.block-size or prepare more text"
            )
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"vocab_size": vocab_size}),
            "data": config.data.model_copy(update={**_places(config, store), "sha256": store.sha256("train")}),
        }
    )


def _places(config: RunConfig, store: TokenStore) -> dict[str, object]:
    """Where the data is; of several folders with the weights, which are their shares of all tokens unless given.

    What was fetched stays the URL, so that the run goes on, and is evaluated, on any machine.
    """
    opened = [folder.path.absolute() for folder in store.folders]
    places = [
        given if isinstance(given, str) else path
        for given, path in zip(config.data.folders or opened, opened, strict=True)
    ]
    if len(places) == 1:
        return {"path": places[0], "mixture": ()}
    total = len(store.tokens("train"))
    mixed = [
        WeightedFolder(path=place, weight=given.weight or folder.facts("train").tokens / total)
        for place, given, folder in zip(places, config.data.mixture, store.folders, strict=True)
    ]
    return {"path": None, "mixture": tuple(mixed)}


def train(
    config: RunConfig,
    store: TokenStore,
    out: Path,
    *,
    resume: bool = False,
    start: OpenedModel | None = None,
    profile: int = 0,
    trackers: list[Tracker] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda words: None,
    phases: Phases | None = None,
    processes: Processes = ALONE,
) -> Outcome:
    """Train a configuration resolved for `store` into the run folder `out`, from the start or from its newest good checkpoint.

    `start` is the model that training.init names, `profile` a number of steps to record. `should_stop` is asked at every step
    boundary; `warn` hears of checkpoints that had to be passed over; `phases` holds what was done before. Of several
    processes, all call this, and the first one writes.
    """
    started = time.perf_counter()
    phases = phases or Phases()
    machine = choose_machine(config)  # before anything is written: a device that is not there leaves no folder
    phases.end("kernels")
    view = view_of(config, store, config.model.block_size)
    if config.data.windows != "anywhere":
        phases.end("windows")
    config, memory = settle(config, machine, _resident_bytes(config, store), processes)
    if memory.sharing.shards:
        processes = processes.sharded()
    if memory.warning is not None:
        warn(memory.warning)
    run = RunFolder(out)
    writes = processes.rank == 0
    with run.lock(launch_name(), patience(config)) if writes else nullcontext():
        processes.wait_for_first(patience(config) + config.training.process_timeout)  # it may wait for the lock
        mirror = Mirror(run, config.checkpoint.mirror, warn) if writes and config.checkpoint.mirror else None
        found = None
        if resume:
            check_resumable(run.config(), config)
            found = resumed(run, config, warn, processes)
            phases.end("checkpoint")
        if writes:
            run.forget_after(found.state.step if found else -1)  # -1: of a round that ended before its first checkpoint
        if profile and config.training.max_minutes is None:
            from smallgpt.interfaces.profiling import check_length

            check_length(profile, (config.training.max_steps or DEFAULT_STEPS) - (found.state.step if found else 0))
        if writes:
            run.write_config(config)
        sink = Several([JsonLines(run.metrics_file, run.check_held), *(trackers or [])] if writes else [])
        try:
            with explaining_shortage(config, machine, memory):
                model = new_model(config, machine, start)
                if not processes.shards:  # those move block after block: the device may have no room for all of them
                    model.to(machine.device)
                joined = processes.joined(model)
                phases.end("model")
                parts = RunParts(
                    config, store, machine, view, model, sink, should_stop, processes, joined, captures=profile == 0
                )
                if start is not None and start.model.config.block_size > config.model.block_size:
                    parts.say(
                        f"positions: the first {config.model.block_size} of {start.model.config.block_size} are kept"
                    )
                kept = _checkpoints(run, parts, mirror)
                loop = _assemble(parts, run, kept, memory, found, phases, started)
                del found  # its tensors are the model's by now
                with nullcontext() if mirror is None else mirror.complete_after():
                    return _run(loop, parts, run, profile)
        finally:
            sink.close()


def _resident_bytes(config: RunConfig, store: TokenStore) -> int:
    """The size of the tokens, where a GPU may hold them."""
    return store.tokens("train").nbytes if config.data.windows == "anywhere" and len(store.folders) == 1 else 0


def _assemble(
    parts: RunParts,
    run: RunFolder,
    kept: Checkpoints,
    memory: RunMemory,
    found: Resumed | None,
    phases: Phases,
    started: float,
) -> Loop:
    """The loop of a run. What takes long is told as it ends."""
    config, device = parts.config, parts.machine.device
    saved = found.state if found else None
    peak = devices.matmul_peak(device, parts.machine.dtype, seconds=0.1)  # every run waits for it
    phases.end("ceiling")
    total_steps = _planned_steps(config, saved)
    stepper = parts.stepper(total_steps or PROVISIONAL_STEPS)
    phases.end("optimizer")
    parts.tracker.log({**start_event(parts, memory, peak, saved), "startup_seconds": phases.rounded()})
    compiled = _compile(parts, saved)
    look = parts.look()
    if total_steps is None:
        assert config.training.max_minutes is not None, "or the steps were planned"
        total_steps, reason = plan_steps(stepper, parts.batches(0), look, config.training.max_minutes, started)
        phases.end("plan")
        seconds = phases.seconds["plan"]
        parts.tracker.log({"event": "plan", "step": 0, "steps": total_steps, "reason": reason, "seconds": seconds})
        stepper = parts.stepper(total_steps)
    loop = Loop(
        stepper,
        parts.batches(steps_of(config.training.short_windows, total_steps)),
        kept,
        parts.tracker,
        look,
        should_stop=parts.should_stop,
        peak_flops=peak,
        memory=lambda: devices.memory_in_use(device),
        started=started,
        compiled=compiled,
    )
    if found is not None:
        loop.restore(found.tensors_for(stepper))
    return loop


def _checkpoints(run: RunFolder, parts: RunParts, mirror: Mirror | None) -> Checkpoints:
    config, tokenizer = parts.config, parts.store.tokenizer_file
    keep = config.checkpoint.keep
    saved = (lambda: None) if mirror is None else mirror.start
    if config.checkpoint.sharded:
        from smallgpt.infrastructure.sharded_checkpoints import ShardedCheckpoints  # loads torch.distributed

        seconds = config.training.process_timeout
        return ShardedCheckpoints(run, config.model, tokenizer, keep, parts.processes, seconds, saved)
    if parts.processes.rank:
        return checkpoints.NoCheckpoints()
    keeper = checkpoints.RunCheckpoints(run, config.model, tokenizer, keep, config.training.lora_alpha, saved)
    return BackgroundCheckpoints(keeper, parts.say) if config.checkpoint.asynchronous else keeper


def _compile(parts: RunParts, saved: TrainingState | None) -> bool:
    """Compile the blocks if that is the machine's choice or, where it wants a probe, if they are faster. Are they compiled?

    A resumed run keeps what its probe found: a compiled step rounds, and drops, otherwise.
    """
    choice = parts.machine.compiling.value
    if choice == "probe" and saved is not None:
        choice = "on" if saved.loop.get("compiled") else "off"
    if choice == "probe":
        compiled, words = keep_if_faster(parts.stepper(PROVISIONAL_STEPS), parts.batches(0))
        parts.say(f"compile {'on' if compiled else 'off'}: {words}")
        return compiled
    if choice == "on":
        compile_blocks(parts.model)
    return choice == "on"


def _run(loop: Loop, parts: RunParts, run: RunFolder, profile: int) -> Outcome:
    if not profile:
        return loop.run()
    from smallgpt.interfaces.profiling import recording  # brings the profiler, which other runs never need

    if parts.machine.graphs.value == "on":
        parts.say("cuda-graphs off: a profile tells single operations apart")
    with recording(loop, profile, run.path, compiled=loop.compiled):
        return loop.run()


def _planned_steps(config: RunConfig, saved: TrainingState | None) -> int | None:
    """None where they are yet to be found by timing some."""
    if config.training.max_minutes is None:
        return config.training.max_steps or DEFAULT_STEPS
    return None if saved is None else int(saved.loop["total_steps"])


def start_event(parts: RunParts, memory: RunMemory, peak: float, saved: TrainingState | None) -> dict[str, Any]:
    """The first line of a sitting: what runs, where, on which data, and the lines to compare with."""
    config, store, machine = parts.config, parts.store, parts.machine
    settings = config.training
    validation_bytes, validation_tokens = store.text_bytes("validation"), len(store.tokens("validation"))
    planned = None if settings.max_minutes else settings.max_steps or DEFAULT_STEPS
    return {
        "event": "start",
        "step": saved.step if saved else 0,
        "resumed_from": saved.step if saved else None,
        "device": str(machine.device),
        "processes": parts.processes.count,
        "threads": int(machine.threads.value),
        "precision": machine.precision.value,
        "reasons": machine.reasons() | memory.reasons(),
        **memory.event(),
        "init": settings.init,
        "parameters": parts.model.n_parameters(positions=True),
        "trained_parameters": n_trained(parts.model),
        "planned_steps": saved.loop["total_steps"] if saved and planned is None else planned,
        "tokens_per_step": settings.batch_size * config.model.block_size,
        "vocab_size": config.model.vocab_size,
        "token_ids": store.vocab_size,
        "data": " + ".join(str(folder.path.absolute()) for folder in store.folders),
        "baselines": store.baselines,
        "bytes_per_token": validation_bytes / validation_tokens if validation_bytes else None,
        "peak_flops": peak,
    }

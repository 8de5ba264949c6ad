"""The one place that knows every layer: from a configuration to a run."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from smallgpt.application.compiling import compile_blocks, keep_if_faster
from smallgpt.application.cuda_graphs import Graphs
from smallgpt.application.ports import Batches, Tracker
from smallgpt.application.step import Stepper
from smallgpt.application.training import Look, Loop, Outcome, plan_steps
from smallgpt.domain.config import DEFAULT_STEPS, INITIAL_STD, RunConfig, steps_of
from smallgpt.domain.errors import DataError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.initialisation import sinusoidal_positions
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure import checkpoints, devices
from smallgpt.infrastructure.device_batches import batches_on
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.token_store import ShortThenFull, TokenStore
from smallgpt.infrastructure.trackers import JsonLines, Several
from smallgpt.interfaces.looking import evaluator, sampler
from smallgpt.interfaces.machine import Machine, choose_machine
from smallgpt.interfaces.memory import RunMemory, explaining_shortage, settle
from smallgpt.interfaces.phases import Phases
from smallgpt.interfaces.resuming import check_resumable, state_to_resume

PROVISIONAL_STEPS = 1000  # of a schedule whose length is yet to be found
VOCABULARY_MULTIPLE = 128  # rows of the embedding: whole tiles of matrix products; gives 50,304 for GPT-2's 50,257


def resolve(config: RunConfig, store: TokenStore, data: Path, *, vocab_size_given: bool) -> RunConfig:
    """The configuration with what the data decides filled in: the folder and, unless given, the vocabulary.

    Raises DataError when the model cannot hold the data's ids or a split is shorter than a block.
    """
    padded = -(-store.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    vocab_size = config.model.vocab_size if vocab_size_given else padded
    if vocab_size < store.vocab_size:
        raise DataError(
            f"model.vocab_size ({vocab_size}) is smaller than the vocabulary of {data} ({store.vocab_size}); leave it out"
        )
    for split in ("train", "validation"):
        tokens = len(store.tokens(split))
        if tokens <= config.model.block_size:
            raise DataError(
                f"the {split} split of {data} has {tokens} tokens, and a block needs {config.model.block_size + 1}; "
                "lower --model.block-size or prepare more text"
            )
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"vocab_size": vocab_size}),
            "data": config.data.model_copy(update={"path": data.absolute(), "sha256": store.sha256("train")}),
        }
    )


def train(
    config: RunConfig,
    store: TokenStore,
    out: Path,
    *,
    resume: bool = False,
    profile: int = 0,
    trackers: list[Tracker] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda words: None,
    phases: Phases | None = None,
) -> Outcome:
    """Train a configuration resolved for `store` into the run folder `out`, from the start or from its newest good checkpoint.

    `profile` is a number of steps to record. `should_stop` is asked at every step boundary; `warn` hears of checkpoints that
    had to be passed over; `phases` holds what was done before.
    """
    started = time.perf_counter()
    phases = phases or Phases()
    machine = choose_machine(config)  # before anything is written: a device that is not there leaves no folder
    phases.end("kernels")
    config, memory = settle(config, machine)
    if memory.warning is not None:
        warn(memory.warning)
    run = RunFolder(out)
    with run.lock():
        saved = None
        if resume:
            check_resumable(run.config(), config)
            saved = state_to_resume(run, config, warn)
            run.forget_after(saved.step)
            phases.end("checkpoint")
        if profile and config.training.max_minutes is None:
            from smallgpt.interfaces.profiling import check_length

            check_length(profile, (config.training.max_steps or DEFAULT_STEPS) - (saved.step if saved else 0))
        run.write_config(config)
        sink = Several([JsonLines(run.metrics_file), *(trackers or [])])
        try:
            with explaining_shortage(config, machine, memory):
                return _train(config, run, store, machine, memory, saved, sink, should_stop, started, phases, profile)
        finally:
            sink.close()


def _train(
    config: RunConfig,
    run: RunFolder,
    store: TokenStore,
    machine: Machine,
    memory: RunMemory,
    saved: TrainingState | None,
    tracker: Tracker,
    should_stop: Callable[[], bool],
    started: float,
    phases: Phases,
    profile: int,
) -> Outcome:
    model = _model(config, machine, saved)
    phases.end("model")
    peak = devices.matmul_peak(machine.device, machine.dtype, seconds=0.1)  # every run waits for it
    phases.end("ceiling")
    say = partial(_note, tracker)
    total_steps = _planned_steps(config, saved)

    def make_stepper(total_steps: int) -> Stepper:
        capture = machine.graphs.value == "on" and not profile  # a profile tells single operations apart
        graphs = Graphs(machine.device, _give_up(config, say)) if capture else None
        return Stepper(model, config, total_steps, machine.dtype, graphs=graphs)

    def make_batches(short_steps: int) -> Batches:
        return _batches(config, store, machine, short_steps, say)

    stepper = make_stepper(total_steps or PROVISIONAL_STEPS)
    phases.end("optimizer")
    tracker.log(
        {**start_event(config, store, model, machine, memory, peak, saved), "startup_seconds": phases.rounded()}
    )
    compiled = machine.compiling.value == "on"
    if compiled:
        compile_blocks(model)
    if machine.compiling.value == "probe":
        compiled, words = keep_if_faster(stepper, make_batches(0))
        say(f"compile {'on' if compiled else 'off'}: {words}")
        stepper = make_stepper(total_steps or PROVISIONAL_STEPS)
    look = Look(
        evaluator(store, config.evaluation.max_tokens),
        sampler(config.evaluation, config.training.seed, store.tokenizer),
    )
    if total_steps is None:
        assert config.training.max_minutes is not None, "or the steps were planned"
        total_steps, reason = plan_steps(stepper, make_batches(0), look, config.training.max_minutes, started)
        phases.end("plan")
        seconds = phases.seconds["plan"]
        tracker.log({"event": "plan", "step": 0, "steps": total_steps, "reason": reason, "seconds": seconds})
        stepper = make_stepper(total_steps)
    loop = Loop(
        stepper,
        make_batches(steps_of(config.training.short_windows, total_steps)),
        checkpoints.RunCheckpoints(run, config.model, store.tokenizer_file, config.checkpoint.keep),
        tracker,
        look,
        should_stop=should_stop,
        peak_flops=peak,
        memory=lambda: devices.memory_in_use(machine.device),
        started=started,
    )
    if saved is not None:
        loop.restore(saved)
    if not profile:
        return loop.run()
    from smallgpt.interfaces.profiling import recording  # brings the profiler, which other runs never need

    with recording(loop, profile, run.path, compiled=compiled):
        return loop.run()


def _planned_steps(config: RunConfig, saved: TrainingState | None) -> int | None:
    """None where they are yet to be found by timing some."""
    if config.training.max_minutes is None:
        return config.training.max_steps or DEFAULT_STEPS
    return None if saved is None else int(saved.loop["total_steps"])


def _note(tracker: Tracker, words: str) -> None:
    tracker.log({"event": "note", "step": 0, "words": words})


def _give_up(config: RunConfig, say: Callable[[str], None]) -> Callable[[str], None] | None:
    """What is done when a step cannot be captured: under auto it is said, otherwise it is an error."""
    if config.training.cuda_graphs == "on":
        return None
    return lambda error: say(f"cuda-graphs off: the step could not be captured: {error}")


def _model(config: RunConfig, machine: Machine, saved: TrainingState | None) -> GPT:
    """A new model as the run's settings start it, or the saved one."""
    torch.manual_seed(config.training.seed)
    model = GPT(config.model, machine.kernels.ops)
    model.transformer.recomputes_blocks = config.training.activation_checkpointing
    model.transformer.wte.weight.data.mul_(config.training.embedding_std / INITIAL_STD)
    if config.training.positions == "sinusoidal":
        table = sinusoidal_positions(config.model.block_size, config.model.n_embd)
        model.transformer.wpe.weight.data.copy_(table)
    if saved is not None:
        model.load_state_dict(saved.weights)
    return model.to(machine.device)


def _batches(
    config: RunConfig, store: TokenStore, machine: Machine, short_steps: int, say: Callable[[str], None]
) -> Batches:
    """The run's batches where the machine wants them."""
    on_disk = ShortThenFull(
        store.tokens("train"),
        block_size=config.model.block_size,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        short_steps=short_steps,
    )
    batches, where = batches_on(machine.device, on_disk)
    if machine.device.type == "cuda":
        say(f"tokens {where.value}: {where.reason}")
    return batches


def start_event(
    config: RunConfig,
    store: TokenStore,
    model: GPT,
    machine: Machine,
    memory: RunMemory,
    peak: float,
    saved: TrainingState | None,
) -> dict[str, Any]:
    """The first line of a sitting: what runs, where, on which data, and the lines to compare with."""
    settings = config.training
    validation_bytes, validation_tokens = store.text_bytes("validation"), len(store.tokens("validation"))
    planned = None if settings.max_minutes else settings.max_steps or DEFAULT_STEPS
    return {
        "event": "start",
        "step": saved.step if saved else 0,
        "resumed_from": saved.step if saved else None,
        "device": str(machine.device),
        "threads": int(machine.threads.value),
        "precision": machine.precision.value,
        "reasons": machine.reasons() | ({"micro_batch": memory.reason} if memory.reason else {}),
        **memory.event(),
        "parameters": model.n_parameters(positions=True),
        "planned_steps": saved.loop["total_steps"] if saved and planned is None else planned,
        "tokens_per_step": settings.batch_size * config.model.block_size,
        "vocab_size": config.model.vocab_size,
        "data": str(config.data.path),
        "baselines": store.baselines,
        "bytes_per_token": validation_bytes / validation_tokens if validation_bytes else None,
        "peak_flops": peak,
    }

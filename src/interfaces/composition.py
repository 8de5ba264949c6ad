"""The one place that knows every layer: from a configuration to a run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from smallgpt.application.ports import Tracker
from smallgpt.application.step import Stepper
from smallgpt.application.training import Look, Loop, Outcome, plan_steps
from smallgpt.domain.config import DEFAULT_STEPS, RunConfig, steps_of
from smallgpt.domain.errors import DataError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.initialisation import sinusoidal_positions
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure import checkpoints, devices
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.token_store import ShortThenFull, TokenStore, open_store
from smallgpt.infrastructure.trackers import JsonLines, Several
from smallgpt.interfaces.looking import evaluator, sampler
from smallgpt.interfaces.machine import Machine, choose_machine
from smallgpt.interfaces.memory import RunMemory, explaining_shortage, settle
from smallgpt.interfaces.resuming import check_resumable, state_to_resume

VOCABULARY_MULTIPLE = 64  # rows of the embedding: aligned matrix products; gives 50,304 for GPT-2's 50,257


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
    out: Path,
    *,
    resume: bool = False,
    trackers: list[Tracker] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda words: None,
) -> Outcome:
    """Train a resolved configuration into the run folder `out`, from the start or from its newest good checkpoint.

    `should_stop` is asked at every step boundary; `warn` hears of checkpoints that had to be passed over.
    """
    assert config.data.path is not None, "resolve() fills it in"
    started = time.perf_counter()
    store = open_store(config.data.path)
    machine = choose_machine(config)  # before anything is written: a device that is not there leaves no folder
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
        run.write_config(config)
        sink = Several([JsonLines(run.metrics_file), *(trackers or [])])
        try:
            with explaining_shortage(config, machine, memory):
                return _train(config, run, store, machine, memory, saved, sink, should_stop, started)
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
) -> Outcome:
    settings = config.training
    torch.set_num_threads(int(machine.threads.value))
    model = _model(config, machine, saved)
    forward = torch.compile(model, dynamic=False) if machine.compiling.value == "on" else None
    peak = devices.matmul_peak(machine.device, machine.dtype)
    tracker.log(start_event(config, store, model, machine, memory, peak, saved))
    look = Look(
        evaluator(store, config.evaluation.max_tokens),
        sampler(config.evaluation, settings.seed, store.tokenizer()),
    )

    def make_stepper(total_steps: int) -> Stepper:
        return Stepper(model, config, total_steps, machine.dtype, forward=forward)

    total_steps = settings.max_steps or DEFAULT_STEPS
    if settings.max_minutes is not None and saved is not None:
        total_steps = saved.loop["total_steps"]
    elif settings.max_minutes is not None:
        batches = _batches(config, store, short_steps=0)
        total_steps, reason = plan_steps(make_stepper, batches, look, settings.max_minutes, started)
        tracker.log({"event": "plan", "step": 0, "steps": total_steps, "reason": reason})
    loop = Loop(
        make_stepper(total_steps),
        _batches(config, store, short_steps=steps_of(settings.short_windows, total_steps)),
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
    return loop.run()


def _model(config: RunConfig, machine: Machine, saved: TrainingState | None) -> GPT:
    """A new model as the run's settings start it, or the saved one."""
    torch.manual_seed(config.training.seed)
    model = GPT(config.model, machine.kernels.ops)
    model.transformer.recomputes_blocks = config.training.activation_checkpointing
    model.transformer.wte.weight.data.mul_(config.training.embedding_std / 0.02)
    if config.training.positions == "sinusoidal":
        table = sinusoidal_positions(config.model.block_size, config.model.n_embd)
        model.transformer.wpe.weight.data.copy_(table)
    if saved is not None:
        model.load_state_dict(saved.weights)
    return model.to(machine.device)


def _batches(config: RunConfig, store: TokenStore, *, short_steps: int) -> ShortThenFull:
    return ShortThenFull(
        store.tokens("train"),
        block_size=config.model.block_size,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        short_steps=short_steps,
    )


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

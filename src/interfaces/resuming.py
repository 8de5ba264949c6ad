"""Going on with a run: which state, and what may have changed since."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smallgpt.application.step import Stepper
from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.domain.processes import Processes
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure import checkpoints
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.token_store import TokenStore
from smallgpt.interfaces.launch import patience

# What may change when a run goes on: its length, where and how it is computed, and what is looked at and kept.
FREE_SECTIONS = {"evaluation", "checkpoint", "kernels"}
FREE_SETTINGS = {
    "training": {
        "max_steps",
        "max_minutes",  # to give way to max_steps
        "micro_batch",
        "activation_checkpointing",
        "precision",
        "device",
        "threads",
        "compile",
        "cuda_graphs",
        "parallel",
        "reduce",
        "process_timeout",
        "max_skipped",
    },
    "data": {"path", "corpus", "tokenizer", "vocab_size"},  # its sha256 may not
}


def check_same_data(config: RunConfig, store: TokenStore) -> None:
    """Raises CheckpointError when the run whose settings these are was trained on other tokens than the store's."""
    if config.data.sha256 not in (None, store.sha256("train")):
        raise CheckpointError(
            f"{store.name} holds other tokens than this run was trained on "
            f"(SHA-256 {store.sha256('train')[:12]}, not {str(config.data.sha256)[:12]}).\n"
            "Give its own data, or start a new run with --out instead of --resume."
        )


def check_resumable(before: RunConfig, now: RunConfig) -> None:
    """Raises ConfigError that lists the settings which would make the resumed run another run."""
    minutes = now.training.max_minutes
    if minutes not in (None, before.training.max_minutes):
        raise ConfigError(
            f"training.max_minutes ({minutes:g}) plans a run when it begins, and this one has begun;\n"
            "give --training.max-steps, its whole length, to go on for longer or stop sooner"
        )
    changes = []
    for section in sorted(set(RunConfig.model_fields) - FREE_SECTIONS):
        old, new = _fixed(before, section), _fixed(now, section)
        for name in sorted(old.keys() - FREE_SETTINGS.get(section, set())):
            if old[name] != new[name]:
                changes.append(f"{section}.{name} {old[name]} -> {new[name]}")
    if changes:
        raise ConfigError(
            f"this cannot change when a run is resumed: {'; '.join(changes)}.\nLeave it out, or start a new run with --out."
        )


def _fixed(config: RunConfig, section: str) -> dict[str, Any]:
    """The settings of a section, without where folders of a mixture lie: their sha256 tells which they are."""
    values: dict[str, Any] = getattr(config, section).model_dump()
    if section == "data":
        values["mixture"] = [folder.weight for folder in config.data.mixture]
    return values


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on."""

    folder: Path
    """The checkpoint."""
    state: TrainingState
    """What the first process read of it; tensors that lie in shards are read once there is a model to hold them."""

    def tensors_for(self, stepper: Stepper) -> TrainingState:
        """The state as `Loop.restore` takes it. All processes must call it. Raises CheckpointError."""
        if not self.state.shares:
            return self.state
        from smallgpt.infrastructure.sharded_checkpoints import read_shares  # loads torch.distributed

        weights, tensors = read_shares(self.folder, stepper.model, stepper.optimizers)
        return replace(self.state, weights=weights, optimizer=tensors)


def resumed(run: RunFolder, config: RunConfig, warn: Callable[[str], None], processes: Processes) -> Resumed:
    """The newest checkpoint that is whole; `warn` hears of those that are not. Raises CheckpointError, ConfigError.

    The first process, which holds the run by now, chooses and reads: shared storage shows others an older list for a while.
    """
    found = _newest(run, config, warn) if processes.rank == 0 else None
    processes.wait_for_first(patience(config))  # while it reads and hashes
    known = processes.of_first(found and replace(found, state=replace(found.state, weights={}, optimizer={})))
    assert known is not None, "or the first process has raised"
    return found or known


def _newest(run: RunFolder, config: RunConfig, warn: Callable[[str], None]) -> Resumed:
    path, problems = checkpoints.newest_good(run)
    for problem in problems:
        warn(f"passed over a damaged checkpoint: {problem}")
    saved = checkpoints.load_checkpoint(path)
    if config.training.max_steps is not None and config.training.max_steps < saved.step:
        raise ConfigError(
            f"training.max_steps ({config.training.max_steps}) is less than the {saved.step} steps that {run.path} has done; "
            "a run can only get longer"
        )
    saved.loop["best"] = _lowest_loss(run, saved)
    return Resumed(path, saved)


def _lowest_loss(run: RunFolder, saved: TrainingState) -> float | None:
    """Of the checkpoint marked as best: a state is saved before it is scored, so that it does not know its own."""
    best = checkpoints.best_checkpoint(run)
    if best is not None and (step := int(best.name.removeprefix("step-"))) <= saved.step:
        passes = (event for event in run.metrics() if event["event"] == "validation" and event["step"] == step)
        scores = [float(each["nats_per_token"]) for each in passes if not each.get("final")]  # which has other tokens
        if scores:
            return scores[-1]
    known: float | None = saved.loop["best"]
    return known

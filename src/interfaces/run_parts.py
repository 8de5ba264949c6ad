"""What a run is put together from, once its configuration, its data and its machine are known."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from smallgpt.application.compiling import as_it_is
from smallgpt.application.cuda_graphs import Graphs
from smallgpt.application.ports import Batches, Tracker
from smallgpt.application.step import Stepper
from smallgpt.application.training import Look
from smallgpt.domain.config import INITIAL_STD, RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.initialisation import sinusoidal_positions
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.device_batches import batches_on
from smallgpt.infrastructure.mixture import training_view
from smallgpt.infrastructure.token_store import TokenStore
from smallgpt.infrastructure.windows import ShortThenFull, View
from smallgpt.interfaces.looking import evaluator, sampler
from smallgpt.interfaces.machine import Machine


@dataclass(frozen=True)
class RunParts:
    """A run's pieces, and the making of those that depend on its length."""

    config: RunConfig
    store: TokenStore
    machine: Machine
    view: View
    """What the model sees, in rows of the whole block."""
    model: GPT
    tracker: Tracker
    should_stop: Callable[[], bool]
    captures: bool
    """Whether a step may become a CUDA graph, where the machine is for it: a profile tells single operations apart."""

    def stepper(self, total_steps: int) -> Stepper:
        """A fresh optimizer and schedule for that many steps."""
        graphs = Graphs(self.machine.device) if self.captures and self.machine.graphs.value == "on" else None
        return Stepper(self.model, self.config, total_steps, self.machine.dtype, graphs=graphs)

    def batches(self, short_steps: int) -> Batches:
        """The run's batches where the machine wants them, the first `short_steps` in windows half as long."""
        half = max(1, self.config.model.block_size // 2)
        short = view_of(self.config, self.store, half) if short_steps else None
        on_disk = ShortThenFull(self.view, self.config.training.batch_size, short=short, short_steps=short_steps)
        batches, where = batches_on(self.machine.device, on_disk)
        if self.machine.device.type == "cuda":
            self.say(f"tokens {where.value}: {where.reason}")
        return batches

    def look(self) -> Look:
        """How the loop looks at the model: as it is, so that compiled forms are left to training."""
        return Look(
            as_it_is(evaluator(self.store, self.config.evaluation.max_tokens)),
            as_it_is(
                sampler(self.config.evaluation, self.config.training.seed, self.store.tokenizer, self.store.vocab_size)
            ),
        )

    def say(self, words: str) -> None:
        """Keep a line in the run's record, and show it."""
        self.tracker.log({"event": "note", "step": 0, "words": words})


def view_of(config: RunConfig, store: TokenStore, block_size: int) -> View:
    """What the model sees of the run's data, in rows of that length. Raises DataError, ConfigError."""
    weights = [folder.weight or 1.0 for folder in config.data.mixture]
    return training_view(store, weights, config.data.windows, block_size=block_size, seed=config.training.seed)


def new_model(config: RunConfig, machine: Machine, saved: TrainingState | None) -> GPT:
    """A model as the run's settings start it, or the saved one, on the machine's device."""
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

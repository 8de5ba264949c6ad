"""What a run is put together from, once its configuration, its data and its machine are known."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from smallgpt.application.compiling import as_it_is
from smallgpt.application.cuda_graphs import Graphs
from smallgpt.application.ports import Batches, Tracker
from smallgpt.application.step import Stepper
from smallgpt.application.training import Look
from smallgpt.domain.config import RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.initialisation import sinusoidal_positions
from smallgpt.domain.processes import Processes
from smallgpt.domain.trainable import choose_trainable
from smallgpt.domain.training_config import INITIAL_STD
from smallgpt.infrastructure.device_batches import batches_on
from smallgpt.infrastructure.mixture import training_view
from smallgpt.infrastructure.token_store import TokenStore
from smallgpt.infrastructure.windows import ShortThenFull, View
from smallgpt.interfaces.looking import evaluator, sampler
from smallgpt.interfaces.machine import Machine
from smallgpt.interfaces.opening import OpenedModel
from smallgpt.interfaces.starting import weights_of


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
    processes: Processes
    joined: nn.Module
    """The model as all processes train it together."""
    captures: bool
    """Whether a step may become a CUDA graph, where the machine is for it: a profile tells single operations apart."""

    def stepper(self, total_steps: int) -> Stepper:
        """A fresh optimizer and schedule for that many steps."""
        graphs = Graphs(self.machine.device) if self.captures and self.machine.graphs.value == "on" else None
        return Stepper(self.model, self.config, total_steps, self.machine.dtype, self.processes, self.joined, graphs)

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
        sample = sampler(self.config.evaluation, self.config.training.seed, self.store.tokenizer, self.store.vocab_size)

        def sample_of_whole(model: GPT, step: int) -> dict[str, Any]:
            whole = self._whole(model)
            return {} if whole is None else sample(whole, step)

        return Look(
            as_it_is(evaluator(self.store, self.config.evaluation.max_tokens, self.processes)),
            as_it_is(sample_of_whole),
        )

    def _whole(self, model: GPT) -> GPT | None:
        """The model for the first process, which alone shows samples; put together where each holds a share of it."""
        if not self.processes.shards:
            return model if self.processes.rank == 0 else None
        weights = {}
        for name, parameter in model.named_parameters():
            gathered = self.processes.whole(parameter.detach())
            if self.processes.rank == 0:  # the others need not have room for it
                weights[name] = gathered
        if self.processes.rank:
            return None
        with torch.device("meta"):
            whole = GPT(model.config, model.ops)
            choose_trainable(whole, self.config.training)  # with LoRA's updates, where it has any
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
        whole.load_state_dict(weights, assign=True)
        return whole

    def say(self, words: str) -> None:
        """Keep a line in the run's record, and show it."""
        self.tracker.log({"event": "note", "step": 0, "words": words})


def view_of(config: RunConfig, store: TokenStore, block_size: int) -> View:
    """What the model sees of the run's data, in rows of that length. Raises DataError, ConfigError."""
    weights = [folder.weight or 1.0 for folder in config.data.mixture]
    return training_view(store, weights, config.data.windows, block_size=block_size, seed=config.training.seed)


def new_model(config: RunConfig, machine: Machine, start: OpenedModel | None = None) -> GPT:
    """A model as the run's settings start it, from `start`'s weights if there are such; in the host's memory.

    Raises ConfigError when nothing of it is to be trained.
    """
    torch.manual_seed(config.training.seed)
    model = GPT(config.model, machine.kernels.ops)
    model.transformer.recomputes_blocks = config.training.activation_checkpointing
    model.transformer.wte.weight.data.mul_(config.training.embedding_std / INITIAL_STD)
    if config.training.positions == "sinusoidal":
        table = sinusoidal_positions(config.model.block_size, config.model.n_embd)
        model.transformer.wpe.weight.data.copy_(table)
    if start is not None:
        model.load_state_dict(
            weights_of(start, config), assign=True
        )  # the same memory: no second copy of a large model
        model.lm_head.weight = model.transformer.wte.weight
    choose_trainable(model, config.training)
    return model

"""All that a resumed run needs beside its configuration."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from smallgpt.domain.gpt import GPT
from smallgpt.domain.optimizers import load_state_tensors, state_tensors

Held = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Model parameters by name, the tied head once; optimizer tensors as PARAMETER/STATE."""


def held(model: GPT, optimizers: list[Optimizer]) -> Held:
    """What this process holds of a model and its optimizers."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    return weights, state_tensors(model, optimizers)


def take(model: GPT, optimizers: list[Optimizer], state: Held) -> None:
    """Give a model and its optimizers what `held` found; copies. Raises RuntimeError for weights of another model."""
    weights, tensors = state
    model.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
    load_state_tensors(model, optimizers, tensors)


@dataclass(frozen=True)
class TrainingState:
    """A run between two optimizer steps."""

    step: int
    """Optimizer steps done."""
    weights: dict[str, Tensor]
    """Model parameters by name, the tied head once."""
    optimizer: dict[str, Tensor]
    """Optimizer tensors as PARAMETER/STATE."""
    loop: dict[str, Any]
    """Plain JSON: scaler, planned steps, counters, seconds, best score."""
    shares: bool = False
    """Are the tensors what one of several processes holds, instead of all there is?"""

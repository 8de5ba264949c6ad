"""Optimizers over named parameter groups: matrices decay, biases and norms do not, Muon takes hidden matrices.

AdamW: arXiv 1711.05101, torch.optim's fused form. Muon: domain/muon.py.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from smallgpt.domain.config import OptimizerConfig
from smallgpt.domain.muon import Muon

Named = list[tuple[str, nn.Parameter]]


def parameter_groups(model: nn.Module) -> dict[str, Named]:
    """The trainable parameters by name: hidden (the blocks' matrices), embedding (both tables), vector (biases, norms)."""
    groups: dict[str, Named] = {"hidden": [], "embedding": [], "vector": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2:
            groups["vector"].append((name, parameter))
        elif ".h." in name:
            groups["hidden"].append((name, parameter))
        else:
            groups["embedding"].append((name, parameter))
    return groups


def build_optimizers(
    model: nn.Module, config: OptimizerConfig, precision: torch.dtype = torch.float32
) -> list[Optimizer]:
    """[AdamW], or [AdamW, Muon]; one that would have nothing to train is left out.

    Groups hold (name, parameter) pairs, so that state is keyed by name on disk.

    On a GPU their rates are tensors and nothing is read on the host, so that a step can be captured as a CUDA graph.
    `precision` is that of Muon's matrix products.
    """
    groups = parameter_groups(model)
    device = next(model.parameters()).device
    decayed = groups["embedding"] if config.name == "muon" else groups["embedding"] + groups["hidden"]
    adamw_groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": groups["vector"], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = []
    if any(group["params"] for group in adamw_groups):
        adamw = AdamW(
            [group for group in adamw_groups if group["params"]],
            lr=_rate(config.learning_rate, device),
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
            capturable=device.type == "cuda",
        )
        optimizers.append(adamw)
    if config.name == "muon" and groups["hidden"]:
        muon = Muon(
            groups["hidden"],
            lr=_rate(config.muon_learning_rate, device),
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            dtype=precision,
        )
        optimizers.append(muon)
    return optimizers


def _rate(rate: float, device: torch.device) -> float | Tensor:
    return torch.tensor(rate, device=device) if device.type == "cuda" else rate


def state_tensors(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """Every optimizer tensor under PARAMETER/STATE, so that a checkpoint does not depend on the order of parameters."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value
    return tensors


def load_state_tensors(model: nn.Module, optimizers: list[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Give each optimizer the tensors of its parameters; the inverse of state_tensors."""
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter_name, key = name.rsplit("/", 1)
        by_parameter.setdefault(parameter_name, {})[key] = tensor
    for optimizer in optimizers:
        owned = {p for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            if parameter in owned and name in by_parameter:
                optimizer.state[parameter] = {
                    key: tensor.to(parameter.device, copy=True) for key, tensor in by_parameter[name].items()
                }

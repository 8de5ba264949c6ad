"""A model opened to generate, with weights in fewer bits where asked, and what those cost in bits per byte."""

from collections.abc import Callable
from pathlib import Path

import torch

from smallgpt.domain.errors import HardwareError, KernelError, SmallGPTError
from smallgpt.domain.metrics import Score
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.allocator import keep_freed_memory
from smallgpt.interfaces.looking import evaluate_split
from smallgpt.interfaces.opening import OpenedModel, open_data, open_model
from smallgpt.kernels.packed import Weights, check_weights, pack

TOKENS = 2048
"""Of the validation split, to tell what rounding costs: a moment's work."""


def open_for_generation(
    path: Path, device: str, kernels: str | None, weights: Weights, say: Callable[[str], None]
) -> OpenedModel:
    """open_model with its matrices packed. What rounding costs is said, where the run's own data is still there.

    Raises CheckpointError, ConfigError for weights that this device cannot take, and HardwareError for such kernels.
    """
    place = devices.choose_device(device)
    check_weights(weights, place)
    torch.set_num_threads(int(devices.choose_threads(None).value))
    if place.type == "cpu":
        keep_freed_memory()  # choosing a token takes large tensors, the same ones at every step
    try:
        opened = open_model(path, device, kernels or ("auto" if place.type == "cuda" else "torch"))
    except KernelError as error:
        flags = "another --device" if kernels is None else "--kernels auto, or another --device"
        raise HardwareError(f"{error}.\nUse {flags}.") from None
    before = _score(opened) if weights != "float32" else None
    pack(opened.model, weights)
    if weights != "float32":
        after = _score(opened) if before is not None else None
        say(cost_in_words(weights, before, after, opened.path))
    return opened


def cost_in_words(weights: Weights, before: Score | None, after: Score | None, path: Path) -> str:
    """What rounding the weights did to the score on the same tokens, as one line."""
    if before is None or after is None:
        command = f"smallgpt evaluate {path} --weights {weights} --data DIR"
        return f"weights {weights}: what rounding costs is unknown here; `{command}` tells"
    lost = after.nats_per_token - before.nats_per_token
    if before.bits_per_byte is None or after.bits_per_byte is None:
        return f"weights {weights}: {lost:+.5f} nats per token beside float32's, on {after.tokens:,} tokens"
    return (
        f"weights {weights}: {after.bits_per_byte - before.bits_per_byte:+.5f} bits per byte beside float32's "
        f"{before.bits_per_byte:.4f}, on {after.tokens:,} tokens"
    )


def _score(opened: OpenedModel) -> Score | None:
    try:
        return evaluate_split(opened.model, open_data(opened, None), "validation", max_tokens=TOKENS)
    except SmallGPTError:
        return None  # moved or changed data is no reason not to generate

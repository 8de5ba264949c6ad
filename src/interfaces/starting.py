"""Starting from another model: what a run takes over from it, and what has to fit."""

from pathlib import Path
from typing import Any

from torch import Tensor

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.domain.places import is_url, without_secrets
from smallgpt.infrastructure.formats.hub_models import local_path
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.token_store import TokenStore
from smallgpt.interfaces.opening import OpenedModel, open_model
from smallgpt.interfaces.places import model_at_hand

OWN = ("dropout", "block_size")
"""What a run may choose for itself; a shorter block takes the first rows of the position table."""


def open_start(source: str, progress: Progress | None = None) -> OpenedModel:
    """The model to start from: a run, checkpoint, imported or foreign file or folder, a URL, or a name on the hub.

    Raises CheckpointError.
    """
    if is_url(source):
        return open_model(model_at_hand(source, progress))
    return open_model(local_path(source, progress=progress))


def with_model_of(config: RunConfig, start: OpenedModel) -> RunConfig:
    """The configuration with the model's sizes. Raises ConfigError when it asks for others."""
    theirs, ours, init = start.model.config, config.model, without_secrets(str(config.training.init))
    given = {name: getattr(ours, name) for name in sorted(ours.model_fields_set)}
    others = [name for name in given if name not in OWN and given[name] != getattr(theirs, name)]
    if others:
        differences = "; ".join(f"model.{name} {given[name]}, not {getattr(theirs, name)}" for name in others)
        raise ConfigError(f"{init} is another model: {differences}.\nLeave it out: sizes come from there.")
    if given.get("block_size", 0) > theirs.block_size:
        raise ConfigError(
            f"model.block_size ({ours.block_size}) is larger than that of {init} ({theirs.block_size}), "
            "whose position table ends there; leave it out"
        )
    own: dict[str, Any] = {name: given[name] for name in OWN if name in given}
    if not is_url(init) and Path(init).exists():
        init = str(Path(init).absolute())
    return config.model_copy(
        update={
            "model": theirs.model_copy(update=own),
            "training": config.training.model_copy(update={"init": init}),
        }
    )


def check_data(store: TokenStore, start: OpenedModel, init: str) -> None:
    """Raises DataError when the data's ids mean other tokens than the model's."""
    theirs, ours = start.tokenizer, store.manifest.tokenizer
    if theirs is not None and ours is not None and theirs.fingerprint != ours.fingerprint:
        raise DataError(
            f"{store.name} was made with another tokenizer ({ours.fingerprint[:12]}) than {init} ({theirs.fingerprint[:12]}).\n"
            f"{_remedy(start, init)}"
        )
    if store.vocab_size > start.model.config.vocab_size:
        raise DataError(
            f"{store.name} has {store.vocab_size} token ids, {init} {start.model.config.vocab_size}; "
            "give data made with the model's tokenizer"
        )


def weights_of(start: OpenedModel, config: RunConfig) -> dict[str, Tensor]:
    """The weights that a run of a configuration from `with_model_of` starts with; they share start's memory."""
    weights: dict[str, Tensor] = start.model.state_dict()
    name = "transformer.wpe.weight"
    return weights | {name: weights[name][: config.model.block_size].clone()}


def _remedy(start: OpenedModel, init: str) -> str:
    file = start.path / "tokenizer.json"
    if file.is_file():
        return f"Make data with the model's own: `smallgpt prepare text PATH... --tokenizer {file} --out FOLDER`."
    return f"Import it, `smallgpt import {init} --out models/mine`, and prepare with --tokenizer models/mine/tokenizer.json."

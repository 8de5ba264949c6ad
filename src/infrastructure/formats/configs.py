"""Configurations of other tools' models, checked."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError, ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def model_config(values: dict[str, Any], where: object) -> GPTConfig:
    """GPTConfig of its keys. Raises CheckpointError that names the first wrong one."""
    try:
        return GPTConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{where} is no model of smallgpt: {field} {first['msg']}") from None


def exact_gelu_only(config: GPTConfig, program: str) -> None:
    """Raises ConfigError for a model of the approximate GELU, which a program does not know."""
    if config.activation != "gelu":
        raise ConfigError(
            f"the model's activation is {config.activation}, and {program} computes the exact GELU alone; "
            "export it to another format"
        )

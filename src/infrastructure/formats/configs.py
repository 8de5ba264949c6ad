"""Configurations of other tools' models, checked."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError


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

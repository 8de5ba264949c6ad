"""From a path or a name to a model, whatever tool wrote it."""

from pathlib import Path
from types import ModuleType

from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.formats import seed
from smallgpt.infrastructure.formats.portable import PortableModel

FORMATS: dict[str, ModuleType] = {"seed": seed}
"""Each with `recognises(path)`, `read(path)`, `reader(path)` and `write(model, folder)`."""


def format_of(path: Path) -> str | None:
    """The name of the format that a file or folder is in; None for one that is in none of them."""
    return next((name for name, module in FORMATS.items() if path.exists() and module.recognises(path)), None)


def read_foreign(path: Path) -> PortableModel:
    """The model in a file or folder of another tool. Raises CheckpointError."""
    name = format_of(path)
    if name is None:
        raise CheckpointError(
            f"{path} is no model that smallgpt knows; it reads {', '.join(FORMATS)}, and its own runs"
        )
    model: PortableModel = FORMATS[name].read(path)
    return model

"""A folder of smallgpt's own with nothing but the model: model.safetensors, config.json and tokenizer.json."""

from pathlib import Path

from safetensors.torch import save_file

from smallgpt.infrastructure.files import write_json
from smallgpt.infrastructure.formats.portable import PortableModel


def write(model: PortableModel, folder: Path) -> None:
    """Write the model into an empty folder, as every command takes it."""
    save_file(model.weights, folder / "model.safetensors")
    write_json(folder / "config.json", model.config.model_dump())
    (folder / "model.safetensors").chmod(
        (folder / "config.json").stat().st_mode
    )  # the library writes for its owner alone
    if model.tokenizer is not None:
        model.tokenizer.save(folder / "tokenizer.json")

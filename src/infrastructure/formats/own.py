"""A folder of smallgpt's own with nothing but the model: model.safetensors, config.json and tokenizer.json."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from smallgpt.infrastructure.checkpoints import read_model_config, read_weights
from smallgpt.infrastructure.files import write_json
from smallgpt.infrastructure.formats import plain
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.infrastructure.tokenizers import load_tokenizer


def read(folder: Path) -> PortableModel:
    """What `write` wrote. Raises CheckpointError, and DataError for the tokenizer."""
    weights, file = read_weights(folder), folder / "tokenizer.json"
    weights.pop("lm_head.weight")
    return PortableModel(read_model_config(folder), weights, load_tokenizer(file) if file.exists() else None)


def reader(folder: Path) -> plain.Reader:
    """The formulas, from the file's own tensors."""
    return plain.reader(load_file(folder / "model.safetensors"), plain.OURS, read_model_config(folder))


def write(model: PortableModel, folder: Path) -> tuple[str, ...]:
    """Write the model into an empty folder, as every command takes it -> nothing that could not be kept."""
    save_file(model.weights, folder / "model.safetensors")
    write_json(folder / "config.json", model.config.model_dump())
    (folder / "model.safetensors").chmod(
        (folder / "config.json").stat().st_mode
    )  # the library writes for its owner alone
    if model.tokenizer is not None:
        model.tokenizer.save(folder / "tokenizer.json")
    return ()

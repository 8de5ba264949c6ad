"""From a path or a name to a model, whatever tool wrote it."""

from pathlib import Path
from types import ModuleType

from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.infrastructure.formats import gguf_files, hugging_face, nanogpt, onnx_files, seed
from smallgpt.infrastructure.formats.portable import PortableModel

FORMATS: dict[str, ModuleType] = {
    "seed": seed,
    "nanogpt": nanogpt,
    "hf": hugging_face,
    "gguf": gguf_files,
    "onnx": onnx_files,
}
"""Each with `recognises(path)`, `read(path)`, `reader(path)` and `write(model, folder)`."""
TAKE_TOKENIZER = ("seed", "nanogpt")
"""Those that may come without a tokenizer, or with an unreadable one: `read(path, tokenizer)` takes another's name."""


def format_of(path: Path) -> str | None:
    """The name of the format that a file or folder is in; None for one that is in none of them."""
    return next((name for name, module in FORMATS.items() if path.exists() and module.recognises(path)), None)


def read_foreign(path: Path, tokenizer: str | None = None) -> PortableModel:
    """The model in a file or folder of another tool, with the tokenizer that is named, or else its own.

    Raises CheckpointError, ConfigError and, for the tokenizer, DataError.
    """
    name = format_of(path)
    if name is None:
        if (path / "config.toml").exists() or (path / "model.safetensors").exists():
            raise CheckpointError(f"{path} is smallgpt's own already; every command takes it as it is")
        raise CheckpointError(
            f"{path} is no model that smallgpt knows; it reads {', '.join(FORMATS)}, and its own runs"
        )
    if tokenizer is not None and name not in TAKE_TOKENIZER:
        raise ConfigError(f"{path} ({name}) has its own tokenizer; leave --tokenizer {tokenizer} out")
    model: PortableModel = FORMATS[name].read(path, *([] if tokenizer is None else [tokenizer]))
    if model.tokenizer is not None and model.tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{path}: its {model.tokenizer.name} tokenizer has {model.tokenizer.vocab_size} ids, the model "
            f"{model.config.vocab_size}; it is another model's: --tokenizer names the right one, or none"
        )
    return model

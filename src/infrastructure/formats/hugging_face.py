"""A GPT-2 as Hugging Face's transformers keeps it: a folder of config.json, weights, tokenizer and a card.

Its Conv1D keeps the matrices of a block the other way round than torch's Linear does.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.files import write_json
from smallgpt.infrastructure.formats import hugging_face_config, plain
from smallgpt.infrastructure.formats.configs import read_json
from smallgpt.infrastructure.formats.hugging_face_card import model_card
from smallgpt.infrastructure.formats.hugging_face_tokenizer import read_tokenizer, write_tokenizer
from smallgpt.infrastructure.formats.hugging_face_weights import load_weights, weights_file
from smallgpt.infrastructure.formats.portable import MASKS, PortableModel, expected_shapes, taken

CONFIG = "config.json"
STEMS = (
    "wte",
    "wpe",
    "h.{}.ln_1",
    "h.{}.attn.c_attn",
    "h.{}.attn.c_proj",
    "h.{}.ln_2",
    "h.{}.mlp.c_fc",
    "h.{}.mlp.c_proj",
    "ln_f",
)
TEMPERATURE = 0.8
"""As `smallgpt generate` has it."""


def recognises(path: Path) -> bool:
    """Is it a folder of transformers', of whatever model?"""
    return hugging_face_config.looks_like_one(path / CONFIG)


def read(path: Path) -> PortableModel:
    """The folder's model. Raises CheckpointError, and DataError for a damaged tokenizer."""
    values = read_json(path / CONFIG)
    config, notes = hugging_face_config.read_config(values, path / CONFIG)
    tensors, more = load_weights(path)
    if hugging_face_config.says_no_bias(values) and not any(tensors[name].any() for name in _biases(tensors)):
        config = config.model_copy(update={"bias": False})
        tensors = {name: tensor for name, tensor in tensors.items() if name not in set(_biases(tensors))}
    weights = taken(tensors, config, str(weights_file(path)), layout(tensors))
    tokenizer, words = read_tokenizer(path, config.vocab_size)
    return PortableModel(config, weights, tokenizer, name=path.name, notes=(*notes, *more, *words))


def write(model: PortableModel, folder: Path) -> tuple[str, ...]:
    """Write the model as transformers loads it; what could not be kept, a sentence each."""
    tokenizer, config = model.tokenizer, model.config
    end = None if tokenizer is None else tokenizer.end_of_text
    write_json(folder / CONFIG, hugging_face_config.written_config(config, end))
    save_file(_theirs(model), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod((folder / CONFIG).stat().st_mode)  # the library writes for its owner alone
    ids = config.vocab_size if tokenizer is None else tokenizer.vocab_size
    write_json(folder / "generation_config.json", _generation(end, range(ids, config.vocab_size)))
    (folder / "README.md").write_text(model_card(model), encoding="utf-8")
    if tokenizer is None:
        return ("the model has no tokenizer, so none was written; token ids work, text does not",)
    write_tokenizer(tokenizer, config.block_size, folder)
    return ()


def reader(path: Path) -> plain.Reader:
    """The model as transformers computes it, or, where that is not installed, as the formulas do."""
    if find_spec("transformers") is not None:
        return _transformers(path)
    config, _ = hugging_face_config.read_config(read_json(path / CONFIG), path / CONFIG)
    tensors, _ = load_weights(path)
    return plain.reader(tensors, layout(tensors), config)


def layout(tensors: Mapping[str, Tensor]) -> plain.Layout:
    """Its names, which begin with `transformer.` unless the model was saved without its head."""
    return _layout("transformer." if any(name.startswith("transformer.") for name in tensors) else "")


def _layout(prefix: str) -> plain.Layout:
    stems = {ours: prefix + theirs for ours, theirs in zip(plain.STEMS, STEMS, strict=True)}
    return plain.Layout(stems, transposed=True)


def _biases(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name in tensors if name.endswith(".bias") and not name.endswith(MASKS)]


def _theirs(model: PortableModel) -> dict[str, Tensor]:
    """The weights by its names, with biases of zero where the model has none."""
    names = _layout("transformer.")
    shapes = expected_shapes(model.config.model_copy(update={"bias": True}))
    return {
        names.theirs(name): names.turned(name, model.weights.get(name, torch.zeros(shape)))
        for name, shape in shapes.items()
    }


def _generation(end_of_text: int | None, padding: range) -> dict[str, object]:
    """generation_config.json: text is chosen as `smallgpt generate` chooses it, padding never."""
    settings: dict[str, object] = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0}
    if end_of_text is not None:
        settings |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_text)
    if padding:
        settings["suppress_tokens"] = list(padding)
    return settings


def _transformers(path: Path) -> plain.Reader:
    """By the library's own model. No code of the folder's runs, and nobody is asked for anything."""
    from transformers import GPT2LMHeadModel, __version__

    try:
        with _silence():
            model = GPT2LMHeadModel.from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
            ).eval()
    except Exception as error:  # it checks little, and an odd value raises whatever it leads to
        words = next(iter(str(error).splitlines()), "")[:160] or type(error).__name__
        raise CheckpointError(f"{path}: transformers cannot load it: {words}") from error

    @torch.inference_mode()
    def run(idx: Tensor) -> Tensor:
        logits: Tensor = model(idx, use_cache=False).logits
        return logits

    def run64(idx: Tensor) -> Tensor:
        model.double()  # for good: nobody asks for float32 after float64
        return run(idx)

    return plain.Reader(f"transformers {__version__}", run, run64)


@contextmanager
def _silence() -> Iterator[None]:
    """The library shows no bars and no reports of its own."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

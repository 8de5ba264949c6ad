"""The folder of the hobby project that smallgpt re-creates: config.json, small_gpt_weights.pt and tokenizer.pkl.

Its parameter names are ours, so that only the files differ.
"""

import json
from pathlib import Path

import torch

from smallgpt.domain.config import GPTConfig
from smallgpt.infrastructure.formats import plain
from smallgpt.infrastructure.formats.configs import exact_gelu_only, model_config, read_json
from smallgpt.infrastructure.formats.encoding_pickles import read_encoding, write_encoding
from smallgpt.infrastructure.formats.pickled import load_tensors
from smallgpt.infrastructure.formats.portable import PortableModel, kinds_noted, taken
from smallgpt.infrastructure.tokenizers import AnyTokenizer, Tokenizer
from smallgpt.infrastructure.tokenizing.naming import named_tokenizer

CONFIG, WEIGHTS, TOKENIZER = "config.json", "small_gpt_weights.pt", "tokenizer.pkl"
KEYS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
"""Of its GPTConfig: what its own program accepts."""


def recognises(path: Path) -> bool:
    """Is it such a folder?"""
    return (path / WEIGHTS).is_file()


def read(path: Path, tokenizer: str | None = None) -> PortableModel:
    """The folder's model, and its tokenizer unless another one is named. Raises CheckpointError."""
    config = model_config(read_json(path / CONFIG), path / CONFIG)
    tensors = load_tensors(path / WEIGHTS)
    weights = taken(tensors, config, str(path / WEIGHTS))
    found, notes = _tokenizer(path, tokenizer)
    return PortableModel(config, weights, found, name=path.resolve().name, notes=kinds_noted(tensors) + notes)


def _tokenizer(path: Path, named: str | None) -> tuple[AnyTokenizer | None, tuple[str, ...]]:
    if named is not None:
        return named_tokenizer(named), ()
    if not (path / TOKENIZER).exists():
        return None, (f"it has no {TOKENIZER}, so the model has no tokenizer; --tokenizer names one",)
    return read_encoding(path / TOKENIZER), ()


def write(model: PortableModel, folder: Path) -> tuple[str, ...]:
    """Write the model as the hobby project's program loads it -> what could not be kept, a sentence each.

    tokenizer.pkl is what that project has: a pickled Encoding, here with everything in it. Raises ConfigError for a model
    that its program computes otherwise.
    """
    exact_gelu_only(model.config, "the hobby project's program")
    config = {key: getattr(model.config, key) for key in KEYS}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    torch.save(model.weights | {"lm_head.weight": model.weights["transformer.wte.weight"]}, folder / WEIGHTS)
    if isinstance(model.tokenizer, Tokenizer):
        write_encoding(model.tokenizer, folder / TOKENIZER)
        return ()
    return (f"there is no {TOKENIZER}: {_why_none(model.tokenizer)}",)


def _why_none(tokenizer: AnyTokenizer | None) -> str:
    return "the model has no tokenizer" if tokenizer is None else "tiktoken has no tables of characters"


def reader(path: Path) -> plain.Reader:
    """The model as its own files say it is."""
    config = GPTConfig.model_validate(read_json(path / CONFIG))
    return plain.reader(load_tensors(path / WEIGHTS), plain.OURS, config)

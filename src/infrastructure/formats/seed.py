"""The folder of the hobby project that smallgpt re-creates: config.json, small_gpt_weights.pt and tokenizer.pkl.

Its parameter names are ours, so that only the files differ.
"""

import json
from pathlib import Path

import torch

from smallgpt.domain.config import GPTConfig
from smallgpt.infrastructure.formats import plain
from smallgpt.infrastructure.formats.configs import model_config, read_json
from smallgpt.infrastructure.formats.pickled import load_tensors
from smallgpt.infrastructure.formats.portable import PortableModel, taken

CONFIG, WEIGHTS, TOKENIZER = "config.json", "small_gpt_weights.pt", "tokenizer.pkl"
KEYS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
"""Of its GPTConfig: what its own program accepts."""
LAYOUT = plain.Layout({stem: stem for stem in plain.STEMS})


def recognises(path: Path) -> bool:
    """Is it such a folder?"""
    return (path / WEIGHTS).is_file()


def read(path: Path) -> PortableModel:
    """The folder's model. Raises CheckpointError."""
    config = model_config(read_json(path / CONFIG), path / CONFIG)
    weights = taken(load_tensors(path / WEIGHTS), config, str(path / WEIGHTS))
    return PortableModel(config, weights, None, name=path.name)


def write(model: PortableModel, folder: Path) -> tuple[str, ...]:
    """Write the model as the hobby project's program loads it; what could not be kept, a sentence each."""
    config = {key: getattr(model.config, key) for key in KEYS}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    torch.save(model.weights | {"lm_head.weight": model.weights["transformer.wte.weight"]}, folder / WEIGHTS)
    if model.config.activation != "gelu":
        return ("its program knows the exact GELU alone",)
    return ()


def reader(path: Path) -> plain.Reader:
    """The model as its own files say it is."""
    config = GPTConfig.model_validate(read_json(path / CONFIG))
    return plain.reader(load_tensors(path / WEIGHTS), LAYOUT, config)

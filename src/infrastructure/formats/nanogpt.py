"""nanoGPT's checkpoint: ckpt.pt, which holds the weights, its `model_args`, and what its training needs to go on.

The parameters are named as ours, but for ln_1 and ln_2. It has no tokenizer in it: GPT-2's is meant unless the data folder
has a meta.pkl with a table of characters. Source: model.py, train.py and sample.py of github.com/karpathy/nanoGPT.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.character_tokenizer import CharacterTokenizer
from smallgpt.infrastructure.formats import plain
from smallgpt.infrastructure.formats.character_tables import META, read_characters, write_characters
from smallgpt.infrastructure.formats.configs import exact_gelu_only, model_config
from smallgpt.infrastructure.formats.pickled import load_plain, named_tensors
from smallgpt.infrastructure.formats.portable import PortableModel, expected_shapes, kinds_noted, taken
from smallgpt.infrastructure.tokenizers import GPT2_IDS, AnyTokenizer, gpt2_tokenizer, load_tokenizer
from smallgpt.infrastructure.tokenizing.naming import named_tokenizer

FILE, TOKENIZER = "ckpt.pt", "tokenizer.json"
KEYS = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
"""Its model_args."""
GPT2_SIZES = (GPT2_IDS, 50_304)
"""Vocabularies of which GPT-2's ids are meant: exactly those, or padded as nanoGPT does."""
DATASET = "smallgpt"
"""The name of the data folder in which its sample.py looks for meta.pkl."""
LAYOUT = plain.Layout({stem: stem.replace(".ln1", ".ln_1").replace(".ln2", ".ln_2") for stem in plain.STEMS})


def recognises(path: Path) -> bool:
    """Is it such a file, or a folder with one?"""
    return (path.is_file() and path.suffix in (".pt", ".pth", ".ckpt")) or (path / FILE).is_file()


def read(path: Path, tokenizer: str | None = None) -> PortableModel:
    """The checkpoint's model, with the tokenizer that is named, or else beside it, or else meant. Raises CheckpointError."""
    file = _file(path)
    args, tensors = _parts(file)
    config = _config(args, file)
    ours = {LAYOUT.theirs(name): name for name in expected_shapes(config)}
    weights = taken({ours.get(name, name): tensor for name, tensor in tensors.items()}, config, str(file))
    found, notes = _tokenizer(file, config.vocab_size, tokenizer)
    if "bias" not in args:
        notes += (
            "it is of nanoGPT's first weeks, when the approximate GELU was computed; here the exact one is, as nanoGPT "
            'itself does now: set "activation" to "gelu_tanh" in config.json for the other',
        )
    name = file.resolve().parent.name
    return PortableModel(config, weights, found, name=name, notes=kinds_noted(tensors) + notes)


def write(model: PortableModel, folder: Path) -> tuple[str, ...]:
    """Write ckpt.pt as nanoGPT's sample.py loads it -> what could not be kept, a sentence each. Raises ConfigError."""
    exact_gelu_only(model.config, "nanoGPT")
    weights = {LAYOUT.theirs(name): tensor for name, tensor in model.weights.items()}
    content = {
        "model": weights | {"lm_head.weight": weights["transformer.wte.weight"]},
        "model_args": {key: getattr(model.config, key) for key in KEYS},
        "iter_num": 0,
        "best_val_loss": float("inf"),
        "config": {"dataset": DATASET},
    }
    torch.save(content, folder / FILE)
    no_optimizer = "it has no optimizer state, so nanoGPT can sample from it, but not resume its training"
    return (no_optimizer, *_write_tokenizer(model.tokenizer, folder))


def reader(path: Path) -> plain.Reader:
    """The model as its own file says it is."""
    args, tensors = _parts(_file(path))
    return plain.reader(tensors, LAYOUT, _config(args, path))


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def _parts(file: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    content = load_plain(file)
    args = content.get("model_args") if isinstance(content, Mapping) else None
    if not isinstance(args, Mapping) or "model" not in content:
        raise CheckpointError(
            f"{file} is no checkpoint of nanoGPT: it has no 'model' and 'model_args'; "
            "for another program's weights, name the folder with their config.json"
        )
    return args, named_tensors(content["model"], file)


def _config(args: Mapping[str, Any], file: Path) -> GPTConfig:
    missing = [key for key in KEYS if key not in args and key not in ("bias", "dropout")]
    if missing:
        raise CheckpointError(f"{file}: its model_args do not say {', '.join(missing)}; this is another kind of model")
    surplus = [str(key) for key in args if key not in KEYS]
    if surplus:
        raise CheckpointError(f"{file}: its model_args name {', '.join(surplus[:3])}; this is another kind of model")
    return model_config({"bias": True, "dropout": 0.0, **args}, f"{file}, by its model_args,")


def _tokenizer(file: Path, vocab_size: int, named: str | None) -> tuple[AnyTokenizer | None, tuple[str, ...]]:
    beside, meta = file.with_name(TOKENIZER), file.with_name(META)
    if named is not None:
        return named_tokenizer(named), ()
    if beside.exists():
        return load_tokenizer(beside), ()
    if meta.exists():
        return read_characters(meta), ()
    if vocab_size in GPT2_SIZES:
        return gpt2_tokenizer(), (f"GPT-2's tokenizer is assumed, from {vocab_size} ids; --tokenizer names another",)
    return None, (f"there is no {TOKENIZER} or {META} beside it, so the model has no tokenizer; --tokenizer names one",)


def _write_tokenizer(tokenizer: AnyTokenizer | None, folder: Path) -> tuple[str, ...]:
    """As nanoGPT has it, where it can; else as a file that only `import` looks for."""
    if tokenizer is None or tokenizer.name == "gpt2":
        return ()
    if isinstance(tokenizer, CharacterTokenizer):
        write_characters(tokenizer, folder / META)
        return (f"its sample.py looks for {META} in data/{DATASET}: put it there",)
    tokenizer.save(folder / TOKENIZER)
    return (f"nanoGPT knows GPT-2's tokenizer and characters alone: its ids are those of {TOKENIZER}, beside it",)

"""GPT-2 folders as other people have them, written by transformers."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from smallgpt.infrastructure.bpe_training import train_bpe
from smallgpt.infrastructure.tokenizers import Tokenizer

SIZES = {"n_positions": 80, "n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 320}


def theirs(**settings: Any) -> Any:
    """transformers' own model, small, random and in eval mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{**SIZES, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def saved(folder: Path, **settings: Any) -> Any:
    """The same, saved as transformers saves it."""
    model = theirs(**settings)
    model.save_pretrained(folder)
    return model


def change(file: Path, **values: Any) -> None:
    """Other values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def as_openai(folder: Path) -> Any:
    """As the first GPT-2s are on the hub: names without prefix, the causal masks among the weights; the model itself."""
    model = saved(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in range(SIZES["n_layer"]):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 80, 80).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def write_pair(tokenizer: Tokenizer, folder: Path) -> None:
    """vocab.json and merges.txt of a tokenizer, by the library that has that format."""
    from tokenizers import Tokenizer as Theirs

    tokenizer.save(folder / "whole.json")
    Theirs.from_file(str(folder / "whole.json")).model.save(str(folder))
    (folder / "whole.json").unlink()


def stories_tokenizer() -> Tokenizer:
    """An own BPE of 320 ids at most, end-of-text the last of them."""
    return train_bpe(["Once upon a time, a dog said hello to the cat. They'll meet again." for _ in range(3)], 300)

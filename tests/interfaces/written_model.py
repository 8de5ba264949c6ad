"""A small model on disk whose text is letters, though nobody trained it."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.files import write_json
from smallgpt.infrastructure.tokenizers import byte_tokenizer

BLOCK_SIZE = 24
LETTERS = b"abcdeeet  .\n" + "é".encode()  # é is two tokens: some characters stay unfinished
END = 256


def write_model(folder: Path, *, ends: bool = True) -> Path:
    """Weights, configuration and a tokenizer of bytes, as an exported folder; with `ends`, it may choose end-of-text."""
    config = GPTConfig(block_size=BLOCK_SIZE, vocab_size=384, n_layer=2, n_head=2, n_embd=32, dropout=0.0)
    torch.manual_seed(1)
    model = GPT(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(15)  # some tokens are far likelier than others
        model.transformer.wpe.weight.mul_(80)  # and not only because they came before
        model.lm_head.weight[:, 0] = -4
        model.lm_head.weight[[*set(LETTERS)], 0] = 4
        model.lm_head.weight[END, 0] = 3.6 if ends else -4
        assert model.transformer.ln_f.bias is not None
        model.transformer.ln_f.bias[0] = 6
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors")
    write_json(folder / "config.json", config.model_dump())
    byte_tokenizer().save(folder / "tokenizer.json")
    return folder

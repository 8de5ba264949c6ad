"""The hobby project's and nanoGPT's model, written anew after their descriptions: what exports must work with.

Nothing of smallgpt is imported. `python -m tests.interfaces.other_programs seed|nanogpt FOLDER` loads what is there as the
project's own script does, continues a prompt greedily, and prints the tokens and some logits as JSON.
"""

import json
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = {"seed": ("ln1", "ln2"), "nanogpt": ("ln_1", "ln_2")}


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class Norm(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        heads = [part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in self.c_attn(x).split(C, 2)]
        y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return out


class Block(nn.Module):
    def __init__(self, config: GPTConfig, norms: tuple[str, str]) -> None:
        super().__init__()
        self.norms = norms
        for name in norms:
            self.add_module(name, Norm(config.n_embd, config.bias))
        self.attn = Attention(config)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias),
                "c_proj": nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_submodule(name) for name in self.norms)
        x = x + self.attn(first(x))
        delta: Tensor = self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](second(x))))
        return x + delta


class GPT(nn.Module):
    def __init__(self, config: GPTConfig, norms: tuple[str, str]) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList(Block(config, norms) for _ in range(config.n_layer)),
                "ln_f": Norm(config.n_embd, config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight  # type: ignore[assignment]

    def forward(self, idx: Tensor) -> Tensor:
        x = self.transformer["wte"](idx) + self.transformer["wpe"](torch.arange(idx.size(1)))
        for block in self.transformer["h"]:  # type: ignore[attr-defined]
            x = block(x)
        logits: Tensor = self.lm_head(self.transformer["ln_f"](x))
        return logits

    @torch.no_grad()
    def generate(self, idx: Tensor, max_new_tokens: int) -> Tensor:
        for _ in range(max_new_tokens):
            seen = idx[:, -self.config.block_size :]
            idx = torch.cat([idx, self(seen)[:, -1].argmax(-1, keepdim=True)], 1)
        return idx


def seed(folder: Path) -> tuple[GPT, Any]:
    config = GPTConfig(**json.loads((folder / "config.json").read_text()))
    model = GPT(config, NORMS["seed"])
    model.load_state_dict(torch.load(folder / "small_gpt_weights.pt", map_location="cpu"))
    enc = pickle.loads((folder / "tokenizer.pkl").read_bytes())
    return model, enc.encode_ordinary


def nanogpt(folder: Path) -> tuple[GPT, Any]:
    checkpoint = torch.load(folder / "ckpt.pt", map_location="cpu")
    model = GPT(GPTConfig(**checkpoint["model_args"]), NORMS["nanogpt"])
    model.load_state_dict(checkpoint["model"])
    assert {"iter_num", "best_val_loss", "config"} <= checkpoint.keys()
    meta = pickle.loads((folder / "data" / checkpoint["config"]["dataset"] / "meta.pkl").read_bytes())
    return model, lambda text: [meta["stoi"][character] for character in text]


if __name__ == "__main__":
    model, encode = {"seed": seed, "nanogpt": nanogpt}[sys.argv[1]](Path(sys.argv[2]))
    model.eval()
    context = torch.tensor(encode("Once upon a time")).unsqueeze(0)
    tokens = model.generate(context, 20)
    with torch.no_grad():
        logits = model(context[:, -model.config.block_size :])[0, -1]
    print(json.dumps({"tokens": tokens[0].tolist(), "logits": logits.tolist()}))

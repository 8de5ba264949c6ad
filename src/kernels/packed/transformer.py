"""The transformer's forward pass alone, with as few calls as it takes.

At a few tokens a pass a small model's products take so little that the calls around them count: modules, dropout that is off
and gradients that nobody wants cost as much as a third of the step. The mathematics is domain/gpt.py's, line by line.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smallgpt.domain import gpt
from smallgpt.domain.cache import Past
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.ops import Ops

EPS = 1e-5


class Matrix(Protocol):
    """x Wᵀ + b, of a weight kept in its own way."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight (V, C) and bias (V,), both float32."""

    def __call__(self, x: Tensor, *, gelu: str | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, V) in x's dtype, through a GELU if asked: exact ("none") or "tanh"."""


class PackedBlock(NamedTuple):
    """What a block is made of: the layer norms' weights and biases, and what multiplies."""

    ln1: tuple[Tensor, Tensor | None]
    c_attn: Matrix
    c_proj: Matrix
    ln2: tuple[Tensor, Tensor | None]
    c_fc: Matrix
    mlp_c_proj: Matrix


class Transformer(nn.Module):
    """In the place of domain.gpt.Transformer, for a model that only generates."""

    def __init__(self, transformer: gpt.Transformer, blocks: list[PackedBlock], config: GPTConfig, ops: Ops) -> None:
        super().__init__()
        self.wte, self.wpe = transformer.wte, transformer.wpe
        self.ln_f = transformer.ln_f.weight, transformer.ln_f.bias
        self.blocks, self.n_head, self.gelu, self.ops = blocks, config.n_head, config.gelu, ops

    def forward(self, tokens: Tensor, past: Past | None) -> Tensor:  # (B, T, C) each
        B, T, C = tokens.shape
        positions = torch.arange(T, device=tokens.device) if past is None else past.positions
        narrow = self.wpe.weight.dtype  # of what is multiplied; sums and norms stay float32
        x = F.embedding(positions, self.wpe.weight).float() + tokens
        for layer, block in enumerate(self.blocks):
            h = torch.layer_norm(x, (C,), *block.ln1, EPS).to(narrow)
            qkv = block.c_attn(h).view(B, T, 3, self.n_head, C // self.n_head)
            if past is not None:
                past.append(layer, qkv)
            if past is None or past.is_empty:
                y = self.ops.causal_attention(qkv, 0.0)  # (B, T, H, D)
            else:
                y = self.ops.cached_attention(qkv[:, :, 0], *past.layer(layer))
            x = x + block.c_proj(y.reshape(B, T, C))
            h = torch.layer_norm(x, (C,), *block.ln2, EPS).to(narrow)
            x = x + block.mlp_c_proj(block.c_fc(h, gelu=self.gelu))
        return torch.layer_norm(x, (C,), *self.ln_f, EPS).to(narrow)

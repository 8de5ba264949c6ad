"""The GPT that one writes in an afternoon with torch's best parts, after nanoGPT's model.py: what ours is measured beside.

SDPA with is_causal, nn.LayerNorm, a tied head, full logits and F.cross_entropy; nothing of smallgpt but the sizes.
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smallgpt.domain.config import GPTConfig


class PlainBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.n_head, self.dropout, self.gelu = config.n_head, config.dropout, config.gelu
        self.ln_1, self.ln_2 = nn.LayerNorm(C, bias=config.bias), nn.LayerNorm(C, bias=config.bias)
        self.c_attn, self.attn_proj = nn.Linear(C, 3 * C, bias=config.bias), nn.Linear(C, C, bias=config.bias)
        self.c_fc, self.mlp_proj = nn.Linear(C, 4 * C, bias=config.bias), nn.Linear(4 * C, C, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C)
        x = x + self._drop(self.attn_proj(self._attend(self.ln_1(x))))
        return x + self._drop(self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate=self.gelu)))

    def _attend(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        )  # (B, H, T, D) each
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return y.transpose(1, 2).reshape(B, T, C)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class PlainGPT(nn.Module):
    """Token ids (B, T) to logits (B, T, V), or with targets (B, T) to the scalar mean loss."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(PlainBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02 / sqrt(2 * config.n_layer) if "proj" in name else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.drop(self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device)))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))  # (B, T, V)
        if targets is None:
            whole: Tensor = logits
            return whole
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

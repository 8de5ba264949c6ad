"""The model on one page: a pre-norm GPT with learned positions and a tied output head.

Parameter names, initialisation and `generate` are those of the hobby project this one re-creates, so that its weights load.
Blocks hand on (residual, delta), the stream and what is still to be added to it, so that each addition fuses with the
layer norm that follows it, across block boundaries too.
"""

from collections.abc import Iterator
from functools import partial
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from smallgpt.domain.cache import KVCache, Past
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.dropout import dropout
from smallgpt.domain.ops import TORCH_OPS, Ops, Reduction
from smallgpt.domain.sampling import Sampling, next_token
from smallgpt.domain.training_config import INITIAL_STD
from smallgpt.domain.tying import embed_and_head


class LayerNorm(nn.Module):
    """Layer norm (ε = 1e-5), with the residual addition before it when there is a delta."""

    def __init__(self, config: GPTConfig, ops: Ops) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None
        self.ops = ops

    def forward(self, residual: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:  # (B, T, C) each
        if delta is None:
            return residual, self.ops.layer_norm(residual, self.weight, self.bias, 1e-5)
        return self.ops.add_layer_norm(residual, delta, self.weight, self.bias, 1e-5)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a token sees itself and what came before."""

    def __init__(self, config: GPTConfig, layer: int, ops: Ops) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head, self.dropout, self.layer, self.ops = config.n_head, config.dropout, layer, ops

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        if past is not None:
            past.append(self.layer, qkv)
        if past is None or past.is_empty:
            y = self.ops.causal_attention(qkv, self.dropout if self.training else 0.0)  # (B, T, H, D)
        else:
            y = self.ops.cached_attention(qkv[:, :, 0], *past.layer(self.layer))
        return dropout(self.c_proj(y.reshape(B, T, C)), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers around a GELU, four times as wide inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout, self.gelu = config.dropout, config.gelu

    def forward(self, x: Tensor) -> Tensor:
        return dropout(self.c_proj(F.gelu(self.c_fc(x), approximate=self.gelu)), self.dropout, self.training)


class Block(nn.Module):
    """Attention, then MLP, each reading the normalised stream and adding to it."""

    def __init__(self, config: GPTConfig, layer: int, ops: Ops) -> None:
        super().__init__()
        self.ln1 = LayerNorm(config, ops)
        self.attn = CausalSelfAttention(config, layer, ops)
        self.ln2 = LayerNorm(config, ops)
        self.mlp = MLP(config)

    def forward(self, residual: Tensor, delta: Tensor | None, past: Past | None) -> tuple[Tensor, Tensor]:
        residual, x = self.ln1(residual, delta)
        residual, x = self.ln2(residual, self.attn(x, past))
        return residual, self.mlp(x)


class Transformer(nn.Module):
    """From embedded tokens to the normalised hidden state that the output head reads.

    With `recomputes_blocks` a block keeps its inputs alone for the backward pass, which computes the rest again, dropout
    included: a third more time for far less memory (arXiv 1604.06174).
    """

    def __init__(self, config: GPTConfig, ops: Ops) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer, ops) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config, ops)
        self.dropout = config.dropout
        self.recomputes_blocks = False

    def forward(self, tokens: Tensor, past: Past | None) -> Tensor:  # (B, T, C) each
        positions = torch.arange(tokens.size(1), device=tokens.device) if past is None else past.positions
        residual = dropout(tokens + self.wpe(positions), self.dropout, self.training)
        delta = None
        drops = self.training and self.dropout > 0
        recompute = self.recomputes_blocks and past is None and torch.is_grad_enabled()
        for block in self.h:
            forward = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=drops) if recompute else block
            residual, delta = forward(residual, delta, past)
        x: Tensor = self.ln_f(residual, delta)[1]
        return x


class GPT(nn.Module):
    """The whole model. `ops` are the hot operations; the default is plain torch."""

    def __init__(self, config: GPTConfig, ops: Ops = TORCH_OPS) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.transformer = Transformer(config, ops)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.initialise()

    def initialise(self) -> None:
        """N(0, INITIAL_STD) everywhere, residual projections by 1/√(2·n_layer) less, as in GPT-2; biases 0."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, std=INITIAL_STD / sqrt(2 * self.config.n_layer) if residual else INITIAL_STD)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        z_loss: float = 0.0,
        reduction: Reduction = "mean",
        past: Past | None = None,
        last: Tensor | None = None,
    ) -> Tensor:
        """idx (B, T) int64 -> logits (B, T, vocab), or the scalar loss when targets (B, T) are given: the mean, or `reduction`.

        With a past, idx holds only the tokens that follow the ones in its cache. With last (B,) int64, logits are those
        of each row's token of that index alone, (B, 1, vocab). Raises ValueError when idx is longer than block_size.
        """
        if idx.size(1) > self.config.block_size:
            raise ValueError(f"{idx.size(1)} tokens do not fit the model's context of {self.config.block_size}")
        tokens, head = embed_and_head(self.lm_head.weight, idx)  # (B, T, C), (V, C)
        x = self.transformer(tokens, past)  # (B, T, C)
        if targets is None:
            if last is not None:
                x = x[torch.arange(x.size(0), device=x.device), last][:, None]
            return self.lm_head(x) if head is self.lm_head.weight else F.linear(x, head)
        return self.ops.linear_cross_entropy(
            x.flatten(0, 1), head, targets.flatten(), label_smoothing, ignore_index, z_loss, reduction
        )

    def loss(
        self,
        idx: Tensor,
        targets: Tensor,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        z_loss: float = 0.0,
    ) -> Tensor:
        """The scalar mean loss: forward() under a name for notebooks."""
        return self.forward(idx, targets, label_smoothing=label_smoothing, ignore_index=ignore_index, z_loss=z_loss)

    @torch.inference_mode()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        *,
        n_tokens: int | None = None,
    ) -> Tensor:
        """idx (B, T) int64 -> (B, T + max_new_tokens): the prompt and its continuation, from torch's global generator.

        Ids from n_tokens on are padding of the vocabulary and are never chosen.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, n_tokens=n_tokens)
        return torch.cat([idx, *self.stream(idx, max_new_tokens, sampling)], dim=1)

    @torch.inference_mode()
    def stream(
        self, idx: Tensor, max_new_tokens: int, sampling: Sampling, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """Yield the next token of each row, (B, 1) int64, max_new_tokens times.

        The context is the last block_size tokens; past that, positions shift by one a token, so the cache no longer
        holds and the window is computed anew.
        """
        weight = self.transformer.wpe.weight
        cache = KVCache(self.config, idx.size(0), weight.device, weight.dtype)
        read = 0  # tokens in the cache
        for _ in range(max_new_tokens):
            length = idx.size(1)
            if length <= self.config.block_size:
                logits = self(idx[:, read:], past=cache.after([read] * len(idx), length - read))[:, -1]  # (B, V)
                read = length
            else:
                logits = self(idx[:, -self.config.block_size :])[:, -1]
            new = next_token(logits, idx, sampling, generator)  # (B, 1)
            idx = torch.cat([idx, new], dim=1)
            yield new

    def n_parameters(self, *, positions: bool = False) -> int:
        """Parameters, the tied head counted once; the position table only when asked for."""
        total = sum(p.numel() for p in self.parameters())
        return total if positions else total - self.transformer.wpe.weight.numel()

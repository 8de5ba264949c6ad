"""Look into a model while it runs, and change what it computes: every intermediate by the name TransformerLens gives it.

The forward pass is written out here, with the model's own weights and plain torch, because the fused operations of
domain/gpt.py never hold what is offered: attention weights, for one. Names and shapes are those of TransformerLens's
HookedTransformer (github: TransformerLensOrg/TransformerLens), and so is the way a hook is called, so that code written for it
runs here. Dropout is off, whatever mode the model is in.

Shapes: B sequences, T tokens, H heads, D head size, C = H*D width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from math import sqrt
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.gpt import GPT, Block, LayerNorm

EPS = 1e-5
FIRST = ("hook_embed", "hook_pos_embed")  # (B, T, C) each
LAST = ("ln_final.hook_scale", "ln_final.hook_normalized")
IN_BLOCK = (
    "hook_resid_pre",  # (B, T, C): the residual stream as the block reads it
    "ln1.hook_scale",  # (B, T, 1): the standard deviation that the norm divides by
    "ln1.hook_normalized",  # (B, T, C): before the norm's own weight and bias
    "attn.hook_q",  # (B, T, H, D)
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_attn_scores",  # (B, H, T, T), queries by keys: q kᵀ / √D, -inf in the future
    "attn.hook_pattern",  # their softmax
    "attn.hook_z",  # (B, T, H, D): what each head gathered
    "hook_attn_out",  # (B, T, C): what attention adds to the stream
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_pre",  # (B, T, 4C): before the GELU
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)


class HookPoint(NamedTuple):
    """Where a hook is called."""

    name: str

    def layer(self) -> int:
        """The number of its block. Raises ValueError outside of the blocks."""
        parts = self.name.split(".")
        if parts[0] != "blocks":
            raise ValueError(f"{self.name} belongs to no block")
        return int(parts[1])


class Hook(Protocol):
    """Called with an intermediate; what it returns takes its place, and None leaves it."""

    def __call__(self, value: Tensor, /, *, hook: HookPoint) -> Tensor | None: ...


Names = str | Sequence[str] | Callable[[str], bool]
"""A name, several, or a test that a name passes."""
Offer = Callable[[str, Tensor], Tensor]


def hook_names(config: GPTConfig) -> list[str]:
    """Every name, in the order in which they are computed."""
    blocks = [f"blocks.{layer}.{name}" for layer in range(config.n_layer) for name in IN_BLOCK]
    return [*FIRST, *blocks, *LAST]


def run_with_hooks(model: GPT, idx: Tensor, fwd_hooks: Sequence[tuple[Names, Hook]] = ()) -> Tensor:
    """idx (B, T) int64 -> logits (B, T, V), with hooks called on the way, those of one name in their order.

    A hook may return a changed tensor of the same shape; gradients flow through it. Raises ConfigError for a name that is
    none and for a tensor of another shape, ValueError when idx is longer than block_size.

        def without_head_3(z, hook):
            z = z.clone()
            z[:, :, 3] = 0
            return z

        logits = run_with_hooks(model, idx, [("blocks.0.attn.hook_z", without_head_3)])
    """
    if idx.size(1) > model.config.block_size:
        raise ValueError(f"{idx.size(1)} tokens do not fit the model's context of {model.config.block_size}")
    hooks: dict[str, list[Hook]] = {}
    for names, hook in fwd_hooks:
        for name in _chosen(names, model.config):
            hooks.setdefault(name, []).append(hook)

    def offer(name: str, value: Tensor) -> Tensor:
        for hook in hooks.get(name, ()):
            changed = hook(value, hook=HookPoint(name))
            if changed is not None:
                if changed.shape != value.shape:
                    raise ConfigError(f"the hook at {name} gave {tuple(changed.shape)} for {tuple(value.shape)}")
                value = changed
        return value

    return _forward(model, idx, offer)


def run_with_cache(
    model: GPT, idx: Tensor, names_filter: Names | None = None, fwd_hooks: Sequence[tuple[Names, Hook]] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """idx (B, T) int64 -> logits (B, T, V), and the intermediates by name: all, or those that names_filter chooses.

    They are the very tensors that the logits come from, after any hooks, so that gradients reach them: `retain_grad()` keeps
    theirs. Under torch.no_grad() they cost no more than their own memory; attention's are B·H·T² numbers a block each.
    Raises as run_with_hooks does.

        logits, cache = run_with_cache(model, idx, ["blocks.0.attn.hook_pattern"])
    """
    cache: dict[str, Tensor] = {}

    def keep(value: Tensor, /, *, hook: HookPoint) -> None:
        cache[hook.name] = value

    wanted = hook_names(model.config) if names_filter is None else names_filter
    return run_with_hooks(model, idx, [*fwd_hooks, (wanted, keep)]), cache


def logit_lens(model: GPT, residual: Tensor) -> Tensor:
    """A residual stream (..., C) -> the logits (..., V) that it would give if it were the last one.

    After nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """
    logits: Tensor = model.lm_head(_norm(model.transformer.ln_f, residual, lambda name, value: value))
    return logits


def _forward(model: GPT, idx: Tensor, offer: Offer) -> Tensor:
    parts = model.transformer
    positions = torch.arange(idx.size(1), device=idx.device).expand_as(idx)
    x = offer("hook_embed", parts.wte(idx)) + offer("hook_pos_embed", parts.wpe(positions))  # (B, T, C)
    for layer, block in enumerate(parts.h):
        assert isinstance(block, Block)
        x = _block(block, x, _under(f"blocks.{layer}", offer))
    logits: Tensor = model.lm_head(_norm(parts.ln_f, x, _under("ln_final", offer)))
    return logits


def _block(block: Block, x: Tensor, offer: Offer) -> Tensor:
    x = offer("hook_resid_pre", x)
    normalised = _norm(block.ln1, x, _under("ln1", offer))
    attended = _attention(block, normalised, _under("attn", offer))
    x = offer("hook_resid_mid", x + offer("hook_attn_out", attended))
    normalised = _norm(block.ln2, x, _under("ln2", offer))
    hidden = offer("mlp.hook_pre", block.mlp.c_fc(normalised))
    hidden = offer("mlp.hook_post", F.gelu(hidden, approximate=block.mlp.gelu))
    return offer("hook_resid_post", x + offer("hook_mlp_out", block.mlp.c_proj(hidden)))


def _attention(block: Block, x: Tensor, offer: Offer) -> Tensor:
    B, T, C = x.shape
    heads = block.attn.n_head
    qkv = block.attn.c_attn(x).view(B, T, 3, heads, C // heads)
    q, k, v = (offer(f"hook_{name}", qkv[:, :, number]) for number, name in enumerate("qkv"))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / sqrt(C // heads)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
    scores = offer("hook_attn_scores", scores.masked_fill(future, -torch.inf))
    pattern = offer("hook_pattern", scores.softmax(-1))
    z = offer("hook_z", torch.einsum("bhts,bshd->bthd", pattern, v))
    out: Tensor = block.attn.c_proj(z.flatten(2))
    return out


def _norm(norm: LayerNorm, x: Tensor, offer: Offer) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    scale = offer("hook_scale", (x.square().mean(-1, keepdim=True) + EPS).sqrt())
    x = offer("hook_normalized", x / scale) * norm.weight
    return x if norm.bias is None else x + norm.bias


def _under(prefix: str, offer: Offer) -> Offer:
    return lambda name, value: offer(f"{prefix}.{name}", value)


def _chosen(names: Names, config: GPTConfig) -> list[str]:
    known = hook_names(config)
    if callable(names):
        return [name for name in known if names(name)]
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in known:
            near = ", ".join(get_close_matches(name, known)) or "hook_names(model.config) lists them"
            raise ConfigError(f"no hook point is called {name!r}; near it: {near}")
    return wanted

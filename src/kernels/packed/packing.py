"""A model that only generates, its matrices in the form in which this machine reads them fastest.

A new token reads every weight once and uses each for one multiplication a stream: what counts is bytes, not FLOPs.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.gpt import GPT, Block
from smallgpt.kernels.packed import bfloat16, float32, int8
from smallgpt.kernels.packed.transformer import Matrix, PackedBlock, Transformer

Weights = Literal["float32", "bfloat16", "int8"]
BYTES: dict[Weights, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
MATRICES: dict[Weights, type[Matrix]] = {"float32": float32.Matrix, "bfloat16": bfloat16.Matrix, "int8": int8.Matrix}


def pack(model: GPT, weights: Weights) -> None:
    """Make a model in eval mode one for generation, in place: faster for few rows, and no longer to be trained or saved.

    float32 keeps every weight as it is. bfloat16 rounds matrices and what is multiplied with them to 8 bits of precision.
    int8 rounds matrices to whole numbers up to 127 with one scale a row, and what is multiplied with them as bfloat16 does.
    With both, embeddings, keys and values are bfloat16; sums and norms stay float32. On a GPU, bfloat16 is the whole
    model's. Raises ConfigError.
    """
    check_weights(weights, model.lm_head.weight.device)
    if model.lm_head.weight.device.type != "cpu":
        if weights == "bfloat16":  # cuBLAS needs no layout of its own
            model.bfloat16()
        return
    blocks = [_block(block, weights) for block in model.transformer.h if isinstance(block, Block)]
    head = Head(model.lm_head.weight.detach(), weights)
    setattr(model, "lm_head", head)  # noqa: B010 (not the types that GPT declares)
    model.transformer.wte.weight = head.weight
    if weights != "float32":  # the cache of keys and values takes its dtype from the positions
        model.transformer.wpe.weight = nn.Parameter(model.transformer.wpe.weight.bfloat16(), requires_grad=False)
    setattr(model, "transformer", Transformer(model.transformer, blocks, model.config, model.ops))  # noqa: B010
    model.eval()


def check_weights(weights: str, device: torch.device) -> None:
    """Raise ConfigError for weights that are unknown, or not for this device."""
    if weights not in get_args(Weights):
        raise ConfigError(f"weights is {weights!r}; choose float32, bfloat16 or int8")
    if weights == "int8" and device.type != "cpu":
        raise ConfigError("weights int8 are for generation on a CPU; use --weights bfloat16, or add --device cpu")


def matrix_bytes(config: GPTConfig, weights: Weights) -> int:
    """Bytes of the matrices that a token is multiplied with, the output head included."""
    C = config.n_embd
    return BYTES[weights] * (config.n_layer * 12 * C * C + config.vocab_size * C)


class Head(nn.Module):
    """The output head, and the table that embeddings are looked up in."""

    def __init__(self, weight: Tensor, weights: Weights) -> None:
        super().__init__()
        self.product = MATRICES[weights](weight, None)
        table = weight if weights == "float32" else weight.bfloat16()
        self.weight = nn.Parameter(table, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, V)
        return self.product(x).float()


def _block(block: Block, weights: Weights) -> PackedBlock:
    return PackedBlock(
        ln1=(block.ln1.weight.detach(), _detached(block.ln1.bias)),
        c_attn=_linear(block.attn.c_attn, weights),
        c_proj=_linear(block.attn.c_proj, weights),
        ln2=(block.ln2.weight.detach(), _detached(block.ln2.bias)),
        c_fc=_linear(block.mlp.c_fc, weights),
        mlp_c_proj=_linear(block.mlp.c_proj, weights),
    )


def _linear(linear: nn.Linear, weights: Weights) -> Matrix:
    return MATRICES[weights](linear.weight.detach(), _detached(linear.bias))


def _detached(bias: Tensor | None) -> Tensor | None:
    return bias.detach() if bias is not None else None

"""Small models that nobody trained, every parameter of which matters."""

import torch

from smallgpt.domain.config import Activation, GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.infrastructure.tokenizers import Tokenizer, byte_tokenizer


def untrained(
    *,
    n_layer: int = 2,
    n_embd: int = 32,
    block_size: int = 16,
    vocab_size: int = 260,
    bias: bool = True,
    activation: Activation = "gelu",
    tokenizer: Tokenizer | None = None,
) -> PortableModel:
    """A model of the bytes, with three ids that no tokenizer gives, and numbers large enough to tell mistakes."""
    torch.manual_seed(n_layer + n_embd + block_size)
    config = GPTConfig(
        block_size=block_size,
        vocab_size=vocab_size,
        n_layer=n_layer,
        n_head=2,
        n_embd=n_embd,
        dropout=0.0,
        bias=bias,
        activation=activation,
    )
    weights = {
        name: parameter.detach() + 0.2 * torch.randn(parameter.shape)
        for name, parameter in GPT(config).named_parameters()
    }
    return PortableModel(config, weights, tokenizer or byte_tokenizer(), name="untrained")

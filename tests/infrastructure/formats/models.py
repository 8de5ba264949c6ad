"""Models whose every parameter matters, to convert."""

import torch

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.infrastructure.tokenizers import AnyTokenizer

SMALL = GPTConfig(block_size=12, vocab_size=61, n_layer=2, n_head=2, n_embd=32, dropout=0.0)


def made_model(
    config: GPTConfig = SMALL, tokenizer: AnyTokenizer | None = None, *, spread: float = 0.3
) -> PortableModel:
    """Random in every parameter: initial ones leave biases at 0 and norms at 1, where a lost or swapped one would not show."""
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=float(parameter.dim() == 1), std=spread)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return PortableModel(config, weights, tokenizer, name="made")

"""Other people's training steps, set up as their users would, to be measured beside ours."""

from collections.abc import Callable

import torch

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import ConfigError


def transformers_step(
    config: GPTConfig, batch_size: int, device: torch.device, learning_rate: float = 1e-4
) -> Callable[[int], object]:
    """One optimizer step of transformers' GPT2LMHeadModel: labels given, fp32, AdamW, random tokens.

    Raises ConfigError when transformers is not installed.
    """
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        raise ConfigError("this benchmark needs transformers: pip install 'smallgpt[hf]'") from None
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            activation_function="gelu",
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            resid_pdrop=config.dropout,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)

    def step(i: int) -> None:
        idx = torch.randint(config.vocab_size, (batch_size, config.block_size), device=device)
        model(input_ids=idx, labels=idx).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step

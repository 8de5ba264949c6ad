"""Other people's training steps and generation, set up as their users would, to be measured beside ours."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from smallgpt.domain.config import GPTConfig, OptimizerConfig, RunConfig
from smallgpt.domain.errors import ConfigError, HardwareError
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.plain_gpt import PlainGPT

TrainStep = Callable[[Tensor, Tensor], object]
"""One optimizer step on inputs and targets, (B, T) int64 each."""
TRAINERS = ("transformers", "transformers-compiled", "plain", "plain-compiled")


def train_step(system: str, config: RunConfig, device: torch.device, dtype: torch.dtype) -> TrainStep:
    """The step of one of TRAINERS at the model, optimizer and clipping of config, with products in dtype.

    transformers gets its labels as its users give them, and so predicts T - 1 tokens of T. Raises ConfigError when it is
    not installed and HardwareError where torch.compile does not work.
    """
    name, _, compiled = system.partition("-")
    if name == "transformers":
        model = gpt2(config.model).to(device).train()
        loss: Callable[[Tensor, Tensor], Tensor] = lambda idx, _: model(input_ids=idx, labels=idx).loss  # noqa: E731
    else:
        model = loss = PlainGPT(config.model).to(device)
    if compiled:
        _compiles(system, device)
        model.compile(dynamic=False)  # in place: calls of the module run compiled
    return _step(model, loss, config.optimizer, config.training.clip_norm, device, dtype)


def _step(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    settings: OptimizerConfig,
    clip_norm: float,
    device: torch.device,
    dtype: torch.dtype,
) -> TrainStep:
    """Fused AdamW (the Trainer's default too), autocast, clipping, and fp16's loss scaling where that is the dtype."""
    betas = settings.beta1, settings.beta2
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas, weight_decay=settings.weight_decay, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def step(inputs: Tensor, targets: Tensor) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            mean = loss(inputs.to(device), targets.to(device))
        torch.autograd.backward(scaler.scale(mean))
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def _compiles(system: str, device: torch.device) -> None:
    try:
        devices.choose_compile(device, "on")
    except HardwareError as error:
        reason = str(error).partition(". Use ")[0]
        raise HardwareError(f"{system} cannot be measured: {reason}. Name other systems with --system.") from None


def gpt2(config: GPTConfig) -> Any:
    """transformers' GPT2LMHeadModel of these sizes, with random weights. Raises ConfigError when it is not installed."""
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
            activation_function={"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation],
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            resid_pdrop=config.dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    model.loss_type = "ForCausalLM"  # what it takes anyway, after a warning
    return model


def gpt2_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under GPT2LMHeadModel's names; its Conv1D keeps matrices the other way round."""
    renamed = {}
    for name, tensor in weights.items():
        linear = ".h." in name and tensor.dim() == 2
        renamed[name.replace(".ln1.", ".ln_1.").replace(".ln2.", ".ln_2.")] = tensor.T if linear else tensor
    return renamed


def plain_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under PlainGPT's names."""
    ours_to_theirs = {
        "transformer.": "",
        ".ln1.": ".ln_1.",
        ".ln2.": ".ln_2.",
        ".attn.c_attn.": ".c_attn.",
        ".attn.c_proj.": ".attn_proj.",
        ".mlp.c_fc.": ".c_fc.",
        ".mlp.c_proj.": ".mlp_proj.",
    }
    renamed = {}
    for name, tensor in weights.items():
        for ours, theirs in ours_to_theirs.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


@torch.no_grad()
def seeds_generate(model: PlainGPT, idx: Tensor, max_new_tokens: int) -> Tensor:
    """idx (B, T) -> (B, T + max_new_tokens) as the seed's notebook generates, with top_k 1, which is greedy.

    The context is cropped to the block, every position's logits are computed anew for every token, and one is drawn.
    """
    block_size = model.wpe.num_embeddings
    for _ in range(max_new_tokens):
        logits = model(idx[:, -block_size:])[:, -1]
        logits[logits < logits.topk(1).values] = -torch.inf
        idx = torch.cat([idx, torch.multinomial(logits.softmax(-1), 1)], dim=1)
    return idx

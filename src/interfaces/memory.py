"""The memory plan of a run on the machine that was chosen for it, and the micro-batch that fits."""

import torch

from smallgpt.application.memory_plan import KernelBytes, MemoryPlan, Numbers, plan_memory
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.kernels.attention import memory as attention
from smallgpt.kernels.layer_norm import memory as layer_norm
from smallgpt.kernels.linear_cross_entropy import memory as linear_cross_entropy


def plan(
    config: RunConfig, device: torch.device, dtype: torch.dtype, backends: dict[str, str], micro_batch: int
) -> MemoryPlan:
    """The plan for products in `dtype` by those implementations (operation -> backend) and micro_batch sequences at once."""
    numbers = Numbers(dtype.itemsize, 1 if device.type == "cuda" else None)
    return plan_memory(config, micro_batch, numbers, kernel_bytes(config.model, device, dtype, backends, micro_batch))


def kernel_bytes(
    model: GPTConfig, device: torch.device, dtype: torch.dtype, backends: dict[str, str], micro_batch: int
) -> KernelBytes:
    """What the implementations hold for one micro-batch of that many sequences."""
    B, T, H, D = micro_batch, model.block_size, model.n_head, model.head_size
    N, V, C = B * T, model.vocab_size, model.n_embd
    attended = (backends["attention"], device, dtype, B, T, H, D, model.dropout)
    # our layer norm hands on what a product reads; torch's and the formula's stay fp32
    itemsize = dtype.itemsize if backends["layer_norm"] == "triton" else 4
    loss = linear_cross_entropy.loss_bytes(backends["linear_cross_entropy"], device, dtype, N, V, C, itemsize)
    return KernelBytes(
        attention_kept=attention.kept_bytes(*attended),
        attention_backward=attention.backward_bytes(*attended),
        layer_norm_kept=layer_norm.kept_bytes(backends["layer_norm"], N, C),
        loss_forward=loss.forward,
        loss_backward=loss.backward,
    )

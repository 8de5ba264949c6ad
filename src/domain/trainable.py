"""What of a model is trained: all of it, all but frozen parts, or low-rank updates alone."""

from torch import nn

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.lora import add_lora
from smallgpt.domain.parts import blocks_of, is_part
from smallgpt.domain.training_config import TrainingConfig


def choose_trainable(model: GPT, settings: TrainingConfig) -> None:
    """Freeze what the settings name, and add LoRA's matrices where they ask for them: drawn from torch's global generator.

    What is frozen has requires_grad False, so that it gets no gradient and no optimizer state. Raises ConfigError when a
    block is not there, nothing is left to train, or an update would be as large as a matrix.
    """
    _check_blocks(model.config, settings)
    if settings.lora_rank is not None:
        if settings.lora_rank >= model.config.n_embd:
            raise ConfigError(
                f"training.lora_rank ({settings.lora_rank}) must be less than the model's width ({model.config.n_embd}); "
                "leave it out to train whole matrices"
            )
        add_lora(model, settings.lora_rank, settings.lora_alpha, settings.lora_targets, leave=settings.freeze)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not is_part(name, settings.freeze))
    if not n_trained(model):
        frozen = ",".join(settings.freeze)
        lora = "" if settings.lora_rank is None else f" and training.lora_targets ({','.join(settings.lora_targets)})"
        raise ConfigError(f"nothing is left to train: training.freeze ({frozen}){lora} must leave something")


def n_trained(model: nn.Module) -> int:
    """Parameters that are trained, the tied head counted once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _check_blocks(config: GPTConfig, settings: TrainingConfig) -> None:
    for word in settings.freeze:
        blocks = blocks_of(word)
        if blocks is not None and blocks[1] >= config.n_layer:
            raise ConfigError(f"training.freeze names {word}, and the model has the blocks 0 to {config.n_layer - 1}")

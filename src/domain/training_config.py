"""The settings of the optimization loop."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from smallgpt.domain.parts import check_parts, check_targets
from smallgpt.domain.places import Source
from smallgpt.domain.section import Positive, Section, Unit

INITIAL_STD = 0.02  # of every matrix, as in GPT-2
LORA_ALPHA = 16.0
LORA_TARGETS = ("c_attn", "c_proj", "c_fc")  # all matrices of a block


class TrainingConfig(Section):
    """The optimization loop."""

    max_steps: Positive | None = None
    """Optimizer steps; exactly one of max_steps and max_minutes (2,000 steps when neither is given)."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock length: the first steps are timed once, then the number of steps is fixed and recorded."""
    batch_size: Positive = 32
    """Sequences in one optimizer step, over all micro-batches and processes."""
    micro_batch: Positive | Literal["auto"] | None = None
    """Sequences in one forward and backward pass; batch_size when not given, auto: what fits. Less memory, same result."""
    activation_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping it: about a third slower, far less memory."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of matrix products; weights, statistics and losses stay fp32."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: Positive | None = None
    """CPU threads; as many as this process may use when not given."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the blocks; auto does it on a GPU when a probe succeeds, and on a CPU when it wins in a long run."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """The whole optimizer step as one CUDA graph; auto does it on a GPU, and falls back with a reason."""
    short_windows: Annotated[float, Field(ge=0)] = 0.0
    """First part of the run, steps or share, on windows half as long and twice as many: positions are learned sooner."""
    embedding_std: Annotated[float, Field(gt=0, allow_inf_nan=False)] = INITIAL_STD
    """Spread of the token embeddings at the start; wider ones tell tokens apart sooner, which copying a name needs."""
    positions: Literal["normal", "sinusoidal"] = "normal"
    """How the position table starts: random like all tables, or as sinusoids, from which short runs learn sooner."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1337
    """Fixes initialisation, data order and dropout."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm, after unscaling; 0 switches clipping off."""
    label_smoothing: Unit = 0.0
    """Share of the target mass spread over the vocabulary; never part of a reported validation loss."""
    z_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of lse² in the training loss, which keeps logits from drifting (PaLM: 1e-4); never in a validation loss."""
    parallel: Literal["auto", "ddp", "fsdp2"] = "auto"
    """Each process holds the state whole (ddp) or a share (fsdp2); auto: ddp until the plan says that this does not fit."""
    reduce: Literal["fp32", "bf16"] = "fp32"
    """How gradients travel between processes: bf16 halves the bytes and rounds."""
    process_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a process waits for another, as for the first one while it saves, before the run ends with an error."""
    max_skipped: Positive = 10
    """Steps in a row with a non-finite loss or gradient before the run stops with exit code 5."""
    init: Source | None = None
    """Model whose sizes and weights the run starts from (also --init); positions and embedding_std then change nothing."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they are: embeddings, positions, norms, attention, mlp, blocks, blocks.N, blocks.N-M."""
    lora_rank: Positive | None = None
    """Train updates of this rank beside the blocks' matrices and nothing else (LoRA, arXiv 2106.09685)."""
    lora_alpha: Annotated[float, Field(gt=0)] = LORA_ALPHA
    """The updates count lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] = LORA_TARGETS
    """The matrices that get updates."""

    @field_validator("freeze", "lora_targets", mode="before")
    @classmethod
    def _as_words(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _parts_are_known(self) -> Self:
        check_parts(self.freeze)
        check_targets(self.lora_targets)
        if self.lora_rank is None and (self.lora_alpha, self.lora_targets) != (LORA_ALPHA, LORA_TARGETS):
            raise ValueError("lora_alpha and lora_targets do nothing without lora_rank; give that too")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_steps is not None and self.max_minutes is not None:
            raise ValueError(
                f"max_steps ({self.max_steps}) and max_minutes ({self.max_minutes:g}) exclude each other; give one"
            )
        return self

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> Self:
        if isinstance(self.micro_batch, int) and self.micro_batch > self.batch_size:
            raise ValueError(f"micro_batch ({self.micro_batch}) is larger than batch_size ({self.batch_size})")
        return self

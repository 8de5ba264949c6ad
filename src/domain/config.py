"""Every setting of a run, in frozen sections that check themselves and each other. Imports no torch, so `--help` stays fast.

A field's docstring is its help text. Amounts named "steps or share" are optimizer steps when at least 1 and a share of the
run when below 1: a recipe then fits runs whose length is only known once the machine has been timed.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from smallgpt.domain.places import URL, Place, without_secrets
from smallgpt.domain.section import Positive, Section, StepsOrShare, Unit
from smallgpt.domain.training_config import TrainingConfig

Backend = Literal["auto", "reference", "torch", "triton"]
Activation = Literal["gelu", "gelu_tanh"]
LossBackend = Literal["auto", "reference", "torch", "triton", "triton-chunked", "triton-flash"]
DEFAULT_STEPS = 2000  # of a run that names neither steps nor minutes
VOCABULARY_MULTIPLE = 128  # rows of the embedding: whole tiles of matrix products; gives 50,304 for GPT-2's 50,257


class GPTConfig(Section):
    """The shape of the model: the keys of `config.json`. The defaults are the seed's example, 16.04 M parameters."""

    block_size: Positive = 128
    """Longest context, in tokens."""
    vocab_size: Positive = 50304
    """Rows of the embedding. When not given, a run takes its data's, padded to a multiple of 128; padding is never sampled."""
    n_layer: Positive = 4
    """Transformer blocks."""
    n_head: Positive = 4
    """Attention heads."""
    n_embd: Positive = 256
    """Width of the residual stream; a multiple of n_head."""
    dropout: Unit = 0.1
    """Dropout on embeddings, attention weights and both residual branches."""
    bias: bool = True
    """Biases in the linear layers and layer norms."""
    activation: Activation = "gelu"
    """Between an MLP's layers: the exact (erf) GELU, or gelu_tanh, the approximation that OpenAI's GPT-2 was trained with."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        return self

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def gelu(self) -> Literal["none", "tanh"]:
        """The activation as torch's `gelu(approximate=...)` names it."""
        return "tanh" if self.activation == "gelu_tanh" else "none"


class WeightedFolder(Section):
    """A data folder among several; also written FOLDER=WEIGHT, or FOLDER."""

    path: Place
    weight: Annotated[float, Field(gt=0)] | None = None
    """Its share of the samples, in proportion to the others'."""

    @model_validator(mode="before")
    @classmethod
    def _as_words(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        folder, sign, weight = value.rpartition("=")
        return {"path": folder, "weight": weight} if sign else {"path": value}


class DataConfig(Section):
    """Which tokens to train on, and in which pieces."""

    path: Place | None = None
    """Data folder made by `smallgpt prepare`, or its URL (also --data). Default: data/CORPUS-TOKENIZER, prepared if missing."""
    mixture: tuple[WeightedFolder, ...] = ()
    """Several folders instead: FOLDER=WEIGHT,FOLDER=WEIGHT (also --data for each). No weights: by their tokens."""
    windows: Literal["anywhere", "documents", "packed"] = "anywhere"
    """What a row is: any stretch of the text, one that begins where a document does, or whole documents packed together."""
    corpus: Literal["demo", "tinystories"] | None = None
    """Corpus to prepare when no data folder is given."""
    tokenizer: Literal["gpt2", "bpe", "bytes"] = "gpt2"
    """Tokenizer for a corpus prepared by the run."""
    vocab_size: Annotated[int, Field(ge=257, le=65536)] = 2048
    """Vocabulary of an own BPE."""
    sha256: str | None = None
    """Of the training tokens by dataset.json's word; filled in by the run, so that it cannot be resumed on other data."""

    @field_validator("mixture", mode="before")
    @classmethod
    def _as_words(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _mixture_is_clear(self) -> Self:
        if self.mixture and self.path is not None:
            raise ValueError(f"path ({without_secrets(str(self.path))}) and mixture exclude each other; give one")
        if len({folder.path for folder in self.mixture}) < len(self.mixture):
            raise ValueError("mixture names a folder twice; raise its weight instead")
        if len({folder.weight is None for folder in self.mixture}) == 2:
            raise ValueError("mixture has weights for some folders only; give every one a weight, or none")
        return self

    @property
    def folders(self) -> tuple[Place, ...]:
        """The folders that are named; none for a corpus that the run prepares."""
        return tuple(folder.path for folder in self.mixture) or (() if self.path is None else (self.path,))


class OptimizerConfig(Section):
    """How gradients become updates."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for everything, or muon for the hidden matrices with adamw for the rest."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak rate of AdamW."""
    muon_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """Peak rate of Muon's matrices."""
    beta1: Unit = 0.9
    """AdamW's first decay rate."""
    beta2: Unit = 0.95
    """AdamW's second decay rate."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's floor under the second moment's root."""
    momentum: Unit = 0.95
    """Muon's momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled decay of matrices and embeddings; biases and norms are never decayed."""


class ScheduleConfig(Section):
    """How the learning rate moves, in optimizer steps."""

    name: Literal["cosine", "warm-restarts", "linear", "wsd", "constant"] = "cosine"
    """cosine to the floor; cosine with warm restarts (the seed's); linear to the floor; warm-up, stable, decay; constant."""
    warmup: StepsOrShare = 0.02
    """Linear warm-up: steps or share."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final rate as a share of the peak."""
    restart: Annotated[float, Field(gt=0)] = 0.25
    """warm-restarts: length of the first cycle, steps or share."""
    restart_factor: Positive = 1
    """warm-restarts: each cycle is this many times the one before."""
    decay: Annotated[float, Field(gt=0)] = 0.3
    """wsd: length of the final linear decay, steps or share."""


class EvaluationConfig(Section):
    """What is looked at while training."""

    every: StepsOrShare = 0.1
    """Validation pass: steps or share between two; 0 only at the end."""
    max_tokens: Positive = 100_000
    """Validation tokens of an in-training pass (the first ones of the split); the final pass takes the whole split."""
    sample_every: StepsOrShare = 0.1
    """Continue the prompt: steps or share between two, and at the end; 0 never."""
    sample_tokens: Positive = 60
    """Length of that continuation, in tokens."""
    prompt: str = "Once upon a time"
    """The prompt that is continued again and again."""


class CheckpointConfig(Section):
    """What is kept."""

    every: StepsOrShare = 0.25
    """Steps or share between two checkpoints; 0 only at the end."""
    keep: Positive = 2
    """Newest checkpoints kept, beside the best one."""
    sharded: bool = False
    """Each process writes and reads its share, for models that no process can hold; `smallgpt export` joins the shares."""
    asynchronous: bool = False
    """Copy the state and write it beside training: a shorter pause, for the memory of a second state."""
    mirror: URL | None = None
    """Where the run is kept too: a folder of an object store, such as s3://bucket/runs/first."""


class KernelsConfig(Section):
    """Which implementation computes each hot operation."""

    backend: Backend = "auto"
    """For all operations: reference (the formula), torch (the library's best), triton (ours), or auto (checked here)."""
    attention: Backend | None = None
    """For attention alone."""
    layer_norm: Backend | None = None
    """For (add +) layer norm alone."""
    linear_cross_entropy: LossBackend | None = None
    """For the output head with its loss alone; triton-chunked and triton-flash are its two designs."""


class RunConfig(Section):
    """Everything that defines a run; saved as `config.toml`."""

    model: GPTConfig = GPTConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    kernels: KernelsConfig = KernelsConfig()

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        training, warmup = self.training, self.schedule.warmup
        steps = training.max_steps or (DEFAULT_STEPS if training.max_minutes is None else None)
        if steps is not None and warmup >= steps:
            raise ValueError(f"schedule.warmup ({warmup:g}) must be shorter than training.max_steps ({steps})")
        return self

    @model_validator(mode="after")
    def _shards_hold_one_model(self) -> Self:
        if self.checkpoint.sharded and self.training.lora_rank is not None:
            raise ValueError("checkpoint.sharded is for runs that train all of a model; leave training.lora_rank out")
        if self.checkpoint.sharded and self.checkpoint.asynchronous:
            raise ValueError("checkpoint.sharded and checkpoint.asynchronous exclude each other; give one")
        return self

    @model_validator(mode="after")
    def _muon_has_whole_matrices(self) -> Self:
        training = self.training
        if self.optimizer.name == "muon" and training.lora_rank is not None:
            raise ValueError("training.lora_rank needs optimizer.name adamw; muon is for whole matrices")
        if self.optimizer.name == "muon" and training.parallel == "fsdp2":
            raise ValueError("training.parallel fsdp2 needs optimizer.name adamw; muon is for whole matrices")
        return self


def padded_vocabulary(ids: int) -> int:
    """Rows of the embedding for so many token ids, where the model's settings do not say how many."""
    return -(-ids // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def steps_of(amount: float, total: int) -> int:
    """A "steps or share" amount in optimizer steps of a run of `total` steps: 0 stays 0, anything else is at least 1."""
    if amount == 0:
        return 0
    return max(1, round(amount if amount >= 1 else amount * total))

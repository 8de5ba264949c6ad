"""Low-rank updates beside frozen matrices (LoRA: Hu et al., arXiv 2106.09685).

A matrix W (out, in) is left as it is, and what is trained is B (out, r) times A (r, in), with r a few: y = W x + (α/r) B A x.
B starts as zeros, so that the first step starts from the model as it was; A starts as peft starts it, so that both learn
alike. Afterwards W + (α/r) B A is an ordinary matrix, and the model one without any trace of all this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from torch import Tensor, nn
from torch.nn import functional as F

from smallgpt.domain.parts import is_part, is_target

A, B = "lora_A", "lora_B"


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank update; weight and bias are those of `base`, under the names that they had."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=sqrt(5))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


@dataclass(frozen=True)
class Adapter:
    """The low-rank updates of a model."""

    tensors: dict[str, Tensor]
    """MODULE.lora_A (rank, in) and MODULE.lora_B (out, rank), by smallgpt's names."""
    alpha: float

    @property
    def rank(self) -> int:
        """Of every update."""
        return next(tensor.size(0) for name, tensor in self.tensors.items() if name.endswith(A))

    @property
    def modules(self) -> list[str]:
        """What has an update."""
        return [name.removesuffix(f".{A}") for name in self.tensors if name.endswith(A)]

    def update(self, module: str) -> Tensor:
        """(α/r) B A of a module, (out, in)."""
        return self.alpha / self.rank * (self.tensors[f"{module}.{B}"] @ self.tensors[f"{module}.{A}"])


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Sequence[str], *, leave: Sequence[str] = ()) -> None:
    """Put updates beside the target matrices of all parts but `leave` (domain/parts.py), and freeze everything else.

    A draws from torch's global generator.
    """
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and is_target(name, targets) and not is_part(f"{name}.", leave):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, LoRALinear(module, rank, alpha))


def split(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict as (the base model's, the updates')."""
    updates = {name: tensor for name, tensor in weights.items() if name.endswith((A, B))}
    return {name: tensor for name, tensor in weights.items() if name not in updates}, updates


def merged(weights: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """The weights with the updates added: of a model that computes the same and needs no adapter."""
    updated = {f"{name}.weight": weights[f"{name}.weight"] + adapter.update(name) for name in adapter.modules}
    return {**weights, **updated}

"""`smallgpt bench attention`, `layer-norm` and `cross-entropy`: every backend of an operation beside others' forms."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Group

from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces.cli.bench_flags import Output, Several, Sizes, at_least_one
from smallgpt.interfaces.cli.flags import Switch, Whole
from smallgpt.interfaces.cli.operation_table import tables

if TYPE_CHECKING:
    import torch

    from smallgpt.interfaces.operation_systems import Case


Way = Literal["forward", "backward", "both"]


@Parameter(name="*")
@dataclass(frozen=True)
class Timing:
    """What the three commands have in common."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the operands."""
    direction: Annotated[tuple[Way, ...], Several] = ("forward", "backward", "both")
    """Which of the three, all by default."""
    system: Annotated[tuple[str, ...], Several] = ()
    """Time these only; an error if one of them does not run here. Compiled ones on a CPU must be named."""
    rounds: Whole = 3
    """Every system is timed once a round, in turn."""
    seconds: float = 0.1
    """Of repeats in a round, for each system and direction; 0 for as few as can be."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be timed."""
        at_least_one(rounds=self.rounds)
        if not (isfinite(self.seconds) and self.seconds >= 0):
            raise ConfigError(f"seconds {self.seconds} is no length of time; use 0 or more, as 0.1")


@dataclass(frozen=True)
class Defaults:
    """Sizes that take seconds on a CPU, and sizes that keep a GPU busy."""

    cpu: tuple[int, ...]
    gpu: tuple[int, ...]

    def unless(self, wished: tuple[int, ...], device: "torch.device") -> tuple[int, ...]:
        """What was wished, or the device's own."""
        return wished or (self.gpu if device.type == "cuda" else self.cpu)


def attention(
    *,
    seq_lens: Sizes = (),
    batch_size: Sizes = (),
    n_head: Whole = 16,
    head_size: Whole = 64,
    dropout: float = 0.0,
    timing: Timing | None = None,
    output: Output | None = None,
) -> None:
    """Time causal attention, every backend beside others': forward, backward and both, over sequence lengths.

    Each system is compared with the formula in float64 first; if one of ours is wrong, nothing is timed. The others are
    torch's SDPA, forced to each of its backends, and FlexAttention, each once on the packed projection that the model has
    and once ("-apart") on q, k and v apart. The ceilings are a large matrix product and a large copy, measured in the same
    run; extra memory is the peak above operands and gradients.

    Try:
      smallgpt bench attention
      smallgpt bench attention --seq-lens 128 256 --dropout 0.1 --plot t.png
      smallgpt bench attention --device cuda --dtype bf16 --rounds 5 --json

    Args:
        seq_lens: Tokens in a sequence; 64 128 256 on a CPU and 128 512 1024 2048 on a GPU.
        batch_size: Sequences; 2 on a CPU and 16 on a GPU.
        n_head: Heads.
        head_size: Width of a head.
        dropout: Probability of dropping an attention weight.
    """
    from smallgpt.interfaces.operation_systems import Attention

    at_least_one(n_head=n_head, head_size=head_size)
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout {dropout} is not in [0, 1); use 0 for none")

    def cases(device: "torch.device") -> list[Attention]:
        batches = Defaults((2,), (16,)).unless(batch_size, device)
        lengths = Defaults((64, 128, 256), (128, 512, 1024, 2048)).unless(seq_lens, device)
        return [Attention(B, T, n_head, head_size, dropout) for B, T in product(batches, lengths)]

    _run(cases, ("seq_len", "batch_size"), timing or Timing(), output or Output())


def layer_norm(
    *,
    widths: Sizes = (),
    rows: Sizes = (),
    add: Switch = False,
    timing: Timing | None = None,
    output: Output | None = None,
) -> None:
    """Time layer norm, every backend beside torch's and Liger's: forward, backward and both, over widths.

    Each system is compared with the formula in float64 first; if one of ours is wrong, nothing is timed. The ceiling is the
    bandwidth of a large copy, measured in the same run; extra memory is the peak above operands and gradients.

    Try:
      smallgpt bench layer-norm
      smallgpt bench layer-norm --add --widths 256 768 --plot norm.png
      smallgpt bench layer-norm --device cuda --dtype bf16 --json

    Args:
        widths: Numbers in a row; 256 768 on a CPU and 256 768 2048 4096 8192 on a GPU.
        rows: Rows; 4096 on a CPU and 32768 on a GPU.
        add: Residual addition and layer norm in one.
    """
    from smallgpt.interfaces.operation_systems import LayerNorm

    def cases(device: "torch.device") -> list[LayerNorm]:
        counts = Defaults((4096,), (32768,)).unless(rows, device)
        across = Defaults((256, 768), (256, 768, 2048, 4096, 8192)).unless(widths, device)
        return [LayerNorm(M, C, add) for M, C in product(counts, across)]

    _run(cases, ("width", "rows"), timing or Timing(), output or Output())


def cross_entropy(
    *,
    rows: Sizes = (),
    vocab_size: Sizes = (),
    n_embd: Sizes = (256,),
    timing: Timing | None = None,
    output: Output | None = None,
) -> None:
    """Time the output head with its loss beside full logits, torch's and Liger's own forms; and its memory.

    Each system is compared with the formula in float64 first; if one of ours is wrong, nothing is timed. `forward` is the
    loss alone, as in an evaluation, and `backward` is what `both` takes beyond it: some systems make their gradients
    during the forward pass of training. Extra memory is the peak above operands and gradients.

    Try:
      smallgpt bench cross-entropy
      smallgpt bench cross-entropy --rows 1024 --vocab-size 50304 --plot loss.png
      smallgpt bench cross-entropy --device cuda --dtype bf16 --json

    Args:
        rows: Tokens in a step; 1024 on a CPU and 8192 on a GPU.
        vocab_size: Rows of the weight; 2048 8192 on a CPU and 50304 on a GPU.
        n_embd: Width.
    """
    from smallgpt.interfaces.operation_systems import CrossEntropy

    def cases(device: "torch.device") -> list[CrossEntropy]:
        counts = Defaults((1024,), (8192,)).unless(rows, device)
        vocabularies = Defaults((2048, 8192), (50304,)).unless(vocab_size, device)
        return [CrossEntropy(N, V, C) for N, V, C in product(counts, vocabularies, n_embd)]

    _run(cases, ("rows", "vocab_size", "width"), timing or Timing(), output or Output())


def _run(
    cases_on: "Callable[[torch.device], Sequence[Case]]", along: Sequence[str], timing: Timing, output: Output
) -> None:
    import torch

    from smallgpt.application.benchmarking import three_digits
    from smallgpt.infrastructure import devices
    from smallgpt.infrastructure.provenance import machine
    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.interfaces.operation_benchmarks import Settings, bench, check_systems, measure_ceilings
    from smallgpt.interfaces.operation_plot import plot

    timing.check()
    output.begin()
    device = devices.choose_device(timing.device)
    precision = devices.choose_precision(device, timing.dtype)
    threads = devices.choose_threads(None)
    torch.set_num_threads(int(threads.value))
    say = output.say
    say(f"{'device':10} {device}; threads {threads.value} ({threads.reason}); {precision.value} ({precision.reason})")
    cases = cases_on(device)
    settings = Settings(
        device=device,
        dtype=devices.DTYPES[precision.value],
        directions=timing.direction,
        rounds=timing.rounds,
        seconds=timing.seconds,
        systems=timing.system,
    )
    check_systems(cases, settings)
    ceilings = measure_ceilings(device, settings.dtype)
    say(
        f"{'ceilings':10} {three_digits(ceilings.flops / 1e12)} TFLOP/s, a large {precision.value} matrix product on {device}"
    )
    say(f"{'':10} {three_digits(ceilings.bytes / 1e9)} GB/s, a large copy on {device}, read and written")
    with shown(output.console) as tell:
        rows = bench(cases, settings, ceilings, say, tell)

    def draw(path: Path) -> None:
        shape = ", ".join(f"{name} {value}" for name, value in _fixed(cases).items())
        where = f"{precision.value} on {device}, torch threads {threads.value}; {machine()}"
        plot(rows, along, ceilings, f"{cases[0].operation}: {shape}; {where}".replace("_", " "), path)

    shared = {"operation": cases[0].operation, "ceiling_flops": ceilings.flops, "ceiling_bytes": ceilings.bytes}
    output.end(rows, shared, lambda: Group(*tables(rows)), draw)


def _fixed(cases: "Sequence[Case]") -> dict[str, Any]:
    """The part of the shape that all cases have in common."""
    first, *others = (asdict(case) for case in cases)
    return {name: value for name, value in first.items() if all(other[name] == value for other in others)}

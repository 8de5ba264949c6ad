"""`smallgpt bench train`: a whole training step beside other people's."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from smallgpt.interfaces.cli.bench_flags import MIB, ModelSize, Output, Systems, at_least_one
from smallgpt.interfaces.cli.flags import Whole

if TYPE_CHECKING:
    from smallgpt.application.comparing_training import Comparison


def train(
    *,
    system: Systems = (),
    rounds: Whole = 3,
    steps: Whole = 4,
    size: ModelSize | None = None,
    dropout: float = 0.1,
    batch_size: Whole = 32,
    device: str = "auto",
    output: Output | None = None,
) -> None:
    """Train each system on the same random tokens and compare tokens/s and peak memory. The defaults are the seed's size.

    Every sitting is a process of its own, and all have the same batch, dropout, AdamW and clipping. transformers and
    smallgpt-fp32 compute in fp32, the others in bf16 where the hardware has it. `of ceiling` is the matrix products' share of
    a large product's FLOP/s in the same precision and sitting; `first step` has what is compiled.

    Try:
      smallgpt bench train
      smallgpt bench train --system transformers smallgpt --rounds 5 --json
      smallgpt bench train --vocab-size 2048 --block-size 256 --plot train.png

    Args:
        system: transformers[-compiled], plain[-compiled], smallgpt[-fp32]; the first is the yardstick. All but plain.
        rounds: Sittings of each system, taken in turn.
        steps: Timed steps of a sitting, after two that do not count.
        dropout: For all systems.
        batch_size: Sequences in a step.
        device: auto, cpu, cuda or cuda:N.
    """
    from smallgpt.application.comparing_training import compare
    from smallgpt.domain.config import OptimizerConfig, RunConfig
    from smallgpt.domain.flops import flops_per_token
    from smallgpt.domain.training_config import TrainingConfig
    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.interfaces.comparison_plot import plot
    from smallgpt.interfaces.training_systems import DEFAULT_SYSTEMS, SYSTEMS, sit
    from smallgpt.interfaces.turns import in_turn, known

    size, output = size or ModelSize(), output or Output()
    at_least_one(rounds=rounds, steps=steps)
    known(system, SYSTEMS)
    config = RunConfig(
        model=size.config(dropout),
        training=TrainingConfig(batch_size=batch_size, device=device),
        optimizer=OptimizerConfig(learning_rate=1e-4),
    )
    output.begin()
    with shown(output.console) as tell:
        sittings = in_turn(
            system or DEFAULT_SYSTEMS,
            rounds,
            lambda name: sit(name, config, warmup=2, steps=steps),
            tell,
            None if system else output.say,
        )
    rows = compare(sittings, flops_per_token(config.model))
    figures = [asdict(row) for row in rows]
    settings = {**asdict(size), "dropout": dropout, "batch_size": batch_size, "rounds": rounds, "steps": steps}
    output.end(figures, settings, lambda: _table(rows), lambda path: plot(figures, path))


def _table(rows: Sequence["Comparison"]) -> Table:
    table = Table("system", "tokens/s", "sittings", "of ceiling", "first step", "peak memory", "speed", "memory")
    for row in rows:
        table.add_row(
            f"{row.system}, {row.precision}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.slowest:,.0f}–{row.fastest:,.0f}",
            f"{row.ceiling_fraction:.0%}",
            f"{row.first_step_seconds:.1f} s",
            f"{row.peak_memory_bytes / MIB:,.0f} MiB",
            f"{row.speed_ratio:.2f}x",
            f"{row.memory_ratio:.2f}x",
        )
    return table

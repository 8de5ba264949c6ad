"""`smallgpt bench`: how fast and how large, next to others, in one run."""

import json as json_module
from dataclasses import asdict
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from smallgpt.interfaces.cli.bench_operations import attention, cross_entropy, layer_norm
from smallgpt.interfaces.cli.flags import Json, Whole

ABOUT = """Measure speed and memory next to other implementations, in one run.

Try:
  smallgpt bench attention
  smallgpt bench train"""

app = App(name="bench", help=ABOUT)
app.command(attention)
app.command(layer_norm)
app.command(cross_entropy)


@app.command
def train(
    *,
    system: Annotated[tuple[str, ...], Parameter(negative="")] = (
        "transformers",
        "smallgpt-fp32",
        "smallgpt",
    ),
    rounds: Whole = 3,
    steps: Whole = 4,
    n_layer: Whole = 4,
    n_head: Whole = 4,
    n_embd: Whole = 256,
    block_size: Whole = 128,
    vocab_size: Whole = 50304,
    dropout: float = 0.1,
    batch_size: Whole = 32,
    device: str = "auto",
    json: Json = False,
) -> None:
    """Train each system on random tokens and compare tokens/s and peak memory. The defaults are the seed's size.

    Try:
      smallgpt bench train
      smallgpt bench train --system transformers --system smallgpt --rounds 5 --json
      smallgpt bench train --vocab-size 2048 --block-size 256

    Args:
        system: Systems to compare (transformers, smallgpt-fp32, smallgpt); the first is the yardstick.
        rounds: Sittings of each system, taken in turn, each in a process of its own.
        steps: Timed steps of a sitting, after one that does not count.
        n_layer: Transformer blocks.
        n_head: Attention heads.
        n_embd: Width.
        block_size: Tokens in a sequence.
        vocab_size: Rows of the embedding.
        dropout: For both sides.
        batch_size: Sequences in a step.
        device: auto, cpu, cuda or cuda:N.
        json: Print a JSON list instead.
    """
    from smallgpt.application.benchmarking import compare
    from smallgpt.domain.config import GPTConfig, OptimizerConfig, RunConfig, TrainingConfig
    from smallgpt.domain.errors import ConfigError
    from smallgpt.interfaces.benchmark_systems import SYSTEMS, sit

    for name in system:
        if name not in SYSTEMS:
            raise ConfigError(f"unknown system {name!r}; use {', '.join(SYSTEMS)}")
    config = RunConfig(
        model=GPTConfig(
            n_layer=n_layer,
            n_head=n_head,
            n_embd=n_embd,
            block_size=block_size,
            vocab_size=vocab_size,
            dropout=dropout,
        ),
        training=TrainingConfig(batch_size=batch_size, device=device),
        optimizer=OptimizerConfig(learning_rate=1e-4),
    )
    console = Console(stderr=True)
    sittings = []
    for turn in range(rounds):
        for name in system:
            console.print(f"round {turn + 1}/{rounds}: {name}", style="dim")
            sittings.append(sit(name, config, warmup=1, steps=steps))
    rows = compare(sittings)
    if json:
        print(json_module.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("system", "tokens/s", "slowest–fastest sitting", "peak memory", "speed", "memory")
    for row in rows:
        table.add_row(
            row.system,
            f"{row.tokens_per_second:,.0f}",
            f"{row.slowest:,.0f}–{row.fastest:,.0f}",
            f"{row.peak_memory_bytes / 2**20:,.0f} MiB",
            f"{row.speed_ratio:.2f}x",
            f"{row.memory_ratio:.2f}x",
        )
    Console().print(table)

"""`smallgpt bench scaling`: how time and memory grow with every size of a run."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces.cli.bench_flags import MIB, Output, Sizes, at_least_one
from smallgpt.interfaces.cli.flags import Whole


def scaling(
    *,
    block_size: Sizes = (128, 256, 512),
    batch_size: Sizes = (8, 16, 32),
    n_embd: Sizes = (128, 256, 512),
    n_layer: Sizes = (2, 4, 8),
    vocab_size: Sizes = (2048, 8192, 32768),
    stories: Sizes = (2000, 8000, 32000),
    rounds: Whole = 1,
    steps: Whole = 5,
    device: str = "auto",
    output: Output | None = None,
) -> None:
    """Measure how a training step's time and memory grow with each size of the model, and `prepare`'s with the corpus.

    Sizes vary one at a time; the first value of each is the base point's, and a single value does not vary. Every point is
    a process of its own. Memory is what weights, gradients, optimizer and step take at their peak, and what `prepare` grows
    by. Beside each fitted exponent stands the one that counting gives at the same points: FLOPs for time; for memory
    weights, optimizer and kept activations; and for a corpus its bytes.

    Try:
      smallgpt bench scaling
      smallgpt bench scaling --plot growth.png --out growth.json
      smallgpt bench scaling --n-embd 64 128 256 512 --rounds 3 --json

    Args:
        block_size: Tokens in a sequence; 128 256 512.
        batch_size: Sequences in a step; 8 16 32.
        n_embd: Widths; 128 256 512.
        n_layer: Transformer blocks; 2 4 8.
        vocab_size: Rows of the embedding; 2048 8192 32768.
        stories: Demo stories in the corpus; 2000 8000 32000.
        rounds: Sittings of each point, taken in turn.
        steps: Timed steps of a sitting, after two that do not count.
        device: auto, cpu, cuda or cuda:N.
    """
    from smallgpt.infrastructure.devices import choose_device
    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.interfaces.cost_growth import corpus_curve, run_config, training_curves
    from smallgpt.interfaces.cost_growth_plot import plot

    output = output or Output()
    at_least_one(rounds=rounds, steps=steps)
    sizes = {
        "block_size": block_size,
        "batch_size": batch_size,
        "n_embd": n_embd,
        "n_layer": n_layer,
        "vocab_size": vocab_size,
    }
    for name, values in {**sizes, "stories": stories}.items():
        if len(set(values)) < len(values):
            raise ConfigError(
                f"{name.replace('_', '-')} {' '.join(map(str, values))} has a value twice; name each once"
            )
    if all(len(values) == 1 for values in (*sizes.values(), stories)):
        raise ConfigError("nothing varies; give a size several values, as --n-embd 64 128 256")
    choose_device(device)
    base = {name: values[0] for name, values in sizes.items()}
    output.begin()
    with shown(output.console) as tell:
        rows = training_curves(sizes, device=device, rounds=rounds, steps=steps, tell=tell)
        if len(stories) > 1:
            rows.append(corpus_curve(stories, rounds=rounds, tell=tell))
    settings = {**base, "n_head": run_config(base, device).model.n_head, "rounds": rounds, "steps": steps}
    output.end(rows, settings, lambda: _table(rows), lambda path: plot(rows, path))


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("along", "size", "time", "memory", "time ∝ sizeᵏ: k", "counted", "memory ∝ sizeᵏ: k", "counted")
    for row in rows:
        for number, point in enumerate(row["points"]):
            exponents = (row["time_exponent"], row["time_theory"], row["memory_exponent"], row["memory_theory"])
            table.add_row(
                "" if number else row["along"],
                f"{point['size']:,}",
                _milliseconds(point["seconds"]),
                f"{point['memory_bytes'] / MIB:,.0f} MiB",
                *(("",) * 4 if number else (f"{k:.2f}" for k in exponents)),
            )
        table.add_section()
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"

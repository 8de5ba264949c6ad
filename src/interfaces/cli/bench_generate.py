"""`smallgpt bench generate`: tokens a second of generated text beside transformers', and what the machine allows."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces.cli.bench_flags import MIB, ModelSize, Output, Sizes, Systems, at_least_one
from smallgpt.interfaces.cli.flags import Whole

if TYPE_CHECKING:
    from smallgpt.application.comparing_generation import GenerationRow


def generate(
    *,
    system: Systems = (),
    streams: Sizes = (1, 16),
    prompt_tokens: Whole = 32,
    new_tokens: Whole = 96,
    rounds: Whole = 3,
    size: ModelSize | None = None,
    device: str = "auto",
    output: Output | None = None,
) -> None:
    """Continue prompts greedily with each system and the same random weights. The defaults are the seed's size.

    First each system's tokens are compared with those of one pass over the whole text: if they differ by more than a tie,
    nothing is timed. Every sitting is a process of its own; tokens/s are of all streams together. "bandwidth" is the share
    of what this machine reads from memory that the weights, read once a step, come to; "prefill" the share of its float32
    matrix-product speed from the prompts to the first tokens.

    Try:
      smallgpt bench generate
      smallgpt bench generate --system smallgpt-uncached smallgpt --streams 1 32
      smallgpt bench generate --block-size 256 --new-tokens 200 --json

    Args:
        system: transformers (with its cache), transformers-bf16, seed (the notebook's own generate), smallgpt-uncached,
            smallgpt, smallgpt-bf16, smallgpt-int8; the first is the yardstick. All that run here.
        streams: Sequences continued at once; 1 and 16.
        prompt_tokens: Tokens of a prompt.
        new_tokens: Tokens to add; with the prompt, at most block-size.
        rounds: Sittings of each system and number of streams, taken in turn.
        device: auto, cpu, cuda or cuda:N.
    """
    import torch

    from smallgpt.application.comparing_generation import GenerationSitting, compare_generation
    from smallgpt.infrastructure import devices
    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.interfaces.comparison_plot import plot
    from smallgpt.interfaces.generation_systems import SYSTEMS, sit, verify
    from smallgpt.interfaces.turns import in_turn, known
    from smallgpt.kernels.timing import read_bandwidth

    size, output = size or ModelSize(), output or Output()
    at_least_one(rounds=rounds, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    known(system, SYSTEMS)
    if prompt_tokens + new_tokens > size.block_size:
        raise ConfigError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones do not fit block-size {size.block_size}; "
            "lower --new-tokens"
        )
    config = size.config(dropout=0.0)
    output.begin()
    for count in streams:
        verify(system or SYSTEMS, config, device, prompt_tokens=prompt_tokens, new_tokens=new_tokens, streams=count)
    output.say("the systems' tokens are the model's own")
    place = devices.choose_device(device)
    bandwidth, peak = read_bandwidth(place), devices.matmul_peak(place, torch.float32)
    output.say(f"this machine reads {bandwidth / 1e9:.1f} GB/s and multiplies {peak / 1e9:,.0f} GFLOP/s in float32")
    sittings: list[GenerationSitting] = []
    with shown(output.console) as tell:

        def measure(count: int) -> None:
            sittings.extend(
                in_turn(
                    system or SYSTEMS,
                    rounds,
                    lambda name: sit(
                        name, config, device, prompt_tokens=prompt_tokens, new_tokens=new_tokens, streams=count
                    ),
                    lambda done, total, what: tell(done, total, f"{count} at once: {what}"),
                    None if system else output.say,
                )
            )

        for count in streams:
            measure(count)
    rows = compare_generation(sittings, bytes_per_second=bandwidth, flops_per_second=peak)
    figures = [asdict(row) for row in rows]
    settings = {**asdict(size), "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds}
    settings |= {"read_bytes_per_second": bandwidth, "matmul_flops_per_second": peak}
    output.end(figures, settings, lambda: _table(rows), lambda path: plot(figures, path))


def _table(rows: Sequence["GenerationRow"]) -> Table:
    table = Table(
        "streams",
        "system",
        "tokens/s",
        "sittings",
        "first token",
        "peak memory",
        "speed",
        "memory",
        "bandwidth",
        "prefill",
    )
    for row in rows:
        table.add_row(
            str(row.streams),
            row.system,
            f"{row.tokens_per_second:,.0f}",
            f"{row.slowest:,.0f}–{row.fastest:,.0f}",
            f"{1000 * row.first_token_seconds:.3g} ms",
            f"{row.peak_memory_bytes / MIB:,.0f} MiB",
            f"{row.speed_ratio:.2f}x",
            f"{row.memory_ratio:.2f}x",
            f"{row.bandwidth_fraction:.0%}",
            f"{row.prefill_fraction:.0%}",
        )
    return table

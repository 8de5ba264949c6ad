"""`smallgpt plan`: what training with many GPUs would need and yield, by arithmetic. Loads no torch."""

from dataclasses import asdict
from functools import partial
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from smallgpt.application.scale_plan import Machine, Row, Way, largest, parameters, rows, ways
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.flops import flops_per_token
from smallgpt.interfaces.cli import settings
from smallgpt.interfaces.cli.bench_flags import Sizes
from smallgpt.interfaces.cli.flags import Json
from smallgpt.interfaces.cli.planned_vocabulary import Vocabulary, planned_vocabulary

GB, TERA = 1e9, 1e12  # as data sheets count
Amount = Annotated[float, Parameter(validator=Number(gt=0))]
Share = Annotated[float, Parameter(validator=Number(gt=0, lte=1))]


@settings.with_setting_flags
def plan(
    preset: str | None = None,
    /,
    *,
    config: Path | None = None,
    gpus: Sizes = (1, 8),
    gpu_memory: Amount = 80.0,
    flops: Amount = 989.0,
    bandwidth: Amount = 450.0,
    mfu: Share = 0.4,
    json: Json = False,
    **flags: Any,
) -> None:
    """Plan training on many GPUs: memory in each, bytes sent, tokens a day.

    Arithmetic, for which no GPU is needed; of the settings, only model, training
    and optimizer.name count, and data for the size of the vocabulary. The GPU's
    values are its data sheet's; the defaults are an H100 SXM's, eight in one
    host. --mfu is an assumption: measure yours, and give it.

    Try:
      smallgpt plan gpt2-124m
      smallgpt plan gpt2-124m --gpus 1 8 64 --bandwidth 400
      smallgpt plan seed --gpus 1 2 4 --gpu-memory 16 --flops 65 --bandwidth 8
      smallgpt plan gpt2-124m --training.reduce bf16 --json

    Args:
        preset: Settings that come with smallgpt.
        config: A TOML file with sections as below: [model], then n_layer = 6.
        gpus: How many; several numbers give several plans; 1 8.
        gpu_memory: Of one GPU, in GB.
        flops: Of one GPU in bf16 without sparsity, in TFLOP/s.
        bandwidth: One way over the slowest link between GPUs, in GB/s: of all network cards of a host together.
        mfu: Share of the FLOPs that training reaches while it does not wait for others.
        json: Print a JSON object instead: model, machine, plans, largest.
    """
    layers = [settings.preset_layer(preset)] if preset is not None else []
    layers += [settings.file_layer(config)] if config is not None else []
    run = settings.resolve(*layers, settings.flag_layer(flags))
    _check(run)
    vocabulary = planned_vocabulary(run)
    run = run.model_copy(update={"model": run.model.model_copy(update={"vocab_size": vocabulary.rows})})
    machines = [Machine(n, gpu_memory * GB, flops * TERA, bandwidth * GB, mfu) for n in gpus]
    plans = list(rows(run, machines))
    grown = {machine.gpus: {way: largest(run, machine, way) for way in ways(run)} for machine in machines}
    if json:
        print(dumps(_as_dict(run, vocabulary, machines[0], plans, grown), indent=2))
        return
    _show(run, vocabulary, machines[0], plans, grown)


Grown = dict[int, dict[Way, GPTConfig | None]]


def _check(run: RunConfig) -> None:
    """Raise ConfigError for runs that this arithmetic is not about."""
    training = run.training
    if training.lora_rank is not None or training.freeze:
        raise ConfigError("a plan is for training everything; leave training.lora-rank and training.freeze out")


def _as_dict(
    run: RunConfig, vocabulary: Vocabulary, machine: Machine, plans: list[Row], grown: Grown
) -> dict[str, Any]:
    sizes = parameters(run.model)
    return {
        "model": {
            "parameters": sizes.all,
            "outside_blocks": sizes.outside,
            "vocab_size": vocabulary.rows,
            "vocab_size_from": vocabulary.source,
            "flops_per_token": flops_per_token(run.model),
            "tokens_per_step": run.training.batch_size * run.model.block_size,
        },
        "machine": {key: value for key, value in asdict(machine).items() if key != "gpus"},
        "plans": [
            {
                "gpus": row.gpus,
                "parallel": row.way,
                "micro_batch": row.micro_batch,
                "passes": row.passes,
                "memory_bytes": round(row.memory),
                "sent_bytes": round(row.sent),
                "compute_seconds": row.compute_seconds,
                "waiting_seconds": row.waiting_seconds,
                "tokens_per_second": row.tokens_per_second,
                "tokens_per_day": row.tokens_per_day,
                "verdict": row.verdict,
            }
            for row in plans
        ],
        "largest": [
            {
                "gpus": gpus,
                **{way: None if model is None else parameters(model).all for way, model in found.items()},
            }
            for gpus, found in grown.items()
        ],
    }


def _show(run: RunConfig, vocabulary: Vocabulary, machine: Machine, plans: list[Row], grown: Grown) -> None:
    console = Console() if Console().is_terminal else Console(width=120)
    sizes, tokens = parameters(run.model), run.training.batch_size * run.model.block_size
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    say(
        f"model    {amount(sizes.all)} parameters, {sizes.outside / sizes.all:.0%} of them outside the blocks; "
        f"{amount(flops_per_token(run.model))} FLOPs a token; {tokens:,} tokens a step"
    )
    if vocabulary.assumed:
        say(f"assumed  a vocabulary of {vocabulary.rows:,}; --model.vocab-size N says which, or --data.path FOLDER")
    say(
        f"GPU      {machine.memory / GB:g} GB, {machine.flops / TERA:g} TFLOP/s of which {machine.mfu:.0%} are assumed to be "
        f"used, {machine.bandwidth / GB:g} GB/s to the next"
    )
    muon = run.optimizer.name == "muon"
    moments = "Muon's momentum of the blocks' matrices, AdamW's moments of the rest" if muon else "AdamW's moments"
    say(f"state    fp32 weights, gradients and {moments}; products in bf16")
    table = Table(
        "GPUs", "way", "micro-batch", "memory", "sent a step", "step", "waiting", "tokens/s", "tokens/day", ""
    )
    for row in plans:
        table.add_row(
            f"{row.gpus:,}",
            row.way if row.gpus > 1 else "alone",
            f"{row.micro_batch}" if row.passes == 1 else f"{row.micro_batch}, {row.passes} times",
            f"{row.memory / GB:.1f} GB",
            f"{row.sent / GB:.2f} GB",
            f"{1000 * row.step_seconds:,.0f} ms" if row.step_seconds >= 0.1 else f"{1000 * row.step_seconds:.2g} ms",
            f"{row.waiting_seconds / row.step_seconds:.0%}",
            amount(row.tokens_per_second),
            amount(row.tokens_per_day),
            row.verdict,
        )
    console.print(table)
    for gpus, found in grown.items():
        sizes_found = ", ".join(
            f"{way if gpus > 1 else 'alone'} {_size(model)}" for way, model in found.items() if gpus > 1 or way == "ddp"
        )
        say(f"largest  on {gpus:,}, one sequence each in a step, blocks recomputed: {sizes_found}")


def _size(model: GPTConfig | None) -> str:
    if model is None:
        return "none"
    return f"{amount(parameters(model).all)} ({model.n_layer} blocks, width {model.n_embd:,})"


def amount(number: float) -> str:
    """In three digits: 124 M, 3.8 B."""
    for unit, name in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"

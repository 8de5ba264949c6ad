"""Measuring how cost grows: training steps at sizes varied one at a time, and preparing more and more text."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from smallgpt.application.comparing_training import Sitting
from smallgpt.application.cost_growth import Point, curve, step_bytes, step_flops
from smallgpt.domain.config import GPTConfig, OptimizerConfig, RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.training_config import TrainingConfig
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.allocations import peak_bytes
from smallgpt.infrastructure.corpora import demo
from smallgpt.infrastructure.corpora.planning import DEFAULT_SEPARATOR
from smallgpt.infrastructure.corpora.sources import text_corpus
from smallgpt.infrastructure.tokenizing.making import Options, make_data_folder
from smallgpt.interfaces.fresh_process import in_fresh_process
from smallgpt.interfaces.training_systems import draw, sit_here, step_of

HEAD_SIZE = 64
PAGE = 4096
"""The least that a process can grow by; a model of some kilobytes fits into what its libraries left free."""
Tell = Callable[[int, int | None, str], None]
Sizes = Mapping[str, Sequence[int]]
"""block_size, batch_size, n_embd, n_layer and vocab_size to their sizes, the base point's first."""


def training_curves(sizes: Sizes, *, device: str, rounds: int, steps: int, tell: Tell) -> list[dict[str, Any]]:
    """One row of `application.cost_growth.curve` for each size that has several values; the others stay at their first."""
    base = {name: values[0] for name, values in sizes.items()}
    varying = {name: values for name, values in sizes.items() if len(values) > 1}
    configs = {name: [run_config({**base, name: size}, device) for size in values] for name, values in varying.items()}
    measured: dict[RunConfig, list[tuple[Sitting, int]]] = {
        config: [] for own in configs.values() for config in own
    }  # the base once
    for turn in range(rounds):
        for done, (config, sittings) in enumerate(measured.items()):
            tell(turn * len(measured) + done, rounds * len(measured), "training steps at one size after another")
            sittings.append(in_fresh_process(train_here, config, steps))
    return [
        curve(name, [_point(size, c, measured[c]) for size, c in zip(varying[name], own, strict=True)])
        for name, own in configs.items()
    ]


def _point(size: int, config: RunConfig, measured: Sequence[tuple[Sitting, int]]) -> Point:
    value_bytes = devices.DTYPES[measured[0][0].precision].itemsize
    return Point(
        size=size,
        seconds=[seconds for sitting, _ in measured for seconds in sitting.seconds],
        memory_bytes=max(memory for _, memory in measured),
        ideal_work=step_flops(config.model, config.training.batch_size),
        ideal_memory=step_bytes(config.model, config.training.batch_size, value_bytes),
    )


def train_here(config: RunConfig, steps: int) -> tuple[Sitting, int]:
    """Some training steps in this process, and the most bytes that weights, two steps and what they keep take at a time."""
    sitting = sit_here("smallgpt", config, warmup=2, steps=steps)
    device = devices.choose_device(config.training.device)
    step = step_of("smallgpt", config, sitting.precision, device, draw(config, 2))
    weights = 4 * GPT(config.model).n_parameters(positions=True)
    return sitting, weights + peak_bytes(lambda: [step(0), step(1)], device)


def run_config(at: Mapping[str, int], device: str) -> RunConfig:
    """A run at these sizes, with heads of 64 as far as they divide the width, and no dropout."""
    width = at["n_embd"]
    heads = next(n for n in range(max(1, width // HEAD_SIZE), 0, -1) if width % n == 0)
    return RunConfig(
        model=GPTConfig(
            block_size=at["block_size"],
            vocab_size=at["vocab_size"],
            n_layer=at["n_layer"],
            n_head=heads,
            n_embd=width,
            dropout=0.0,
        ),
        training=TrainingConfig(batch_size=at["batch_size"], device=device),
        optimizer=OptimizerConfig(learning_rate=1e-4),
    )


def corpus_curve(stories: Sequence[int], *, rounds: int, tell: Tell) -> dict[str, Any]:
    """The row of preparing so many demo stories as a text file with an own BPE; sizes are bytes of text, theory is linear."""
    points = []
    for done, count in enumerate(stories):
        tell(done, len(stories), "preparing one corpus after another")
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder, "stories.txt")
            text.write_text(f"\n{DEFAULT_SEPARATOR}\n".join(islice(demo.stories(count), count)), encoding="utf-8")
            measured = [in_fresh_process(prepare_here, text, Path(folder, str(turn))) for turn in range(rounds)]
            size = text.stat().st_size
        seconds = [each[0] for each in measured]
        points.append(Point(size, seconds, max(PAGE, *(each[1] for each in measured)), size, size))
    return curve("corpus_bytes", points)


def prepare_here(text: Path, out: Path) -> tuple[float, int]:
    """Seconds, and peak bytes above the start, of preparing a text file."""
    cpu = torch.device("cpu")
    before, start = devices.memory_in_use(cpu), time.perf_counter()
    make_data_folder(text_corpus([text]), out, Options())
    return time.perf_counter() - start, devices.memory_in_use(cpu) - before

"""What processes of one launch of torchrun take in a few steps: writes RANK.json into the folder that it is given.

{"case, kind": [bytes planned, bytes by which the process grew at most]}. The C library is to give freed blocks back at once
(MALLOC_MMAP_THRESHOLD_), so that a process holds what torch was handed out, in whichever thread it is freed.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallgpt.application.memory_shares import Sharing
from smallgpt.application.step import Stepper
from smallgpt.domain.config import RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.distributed import Replicas, Shards, process_group
from smallgpt.interfaces.memory import plan
from tests.conftest import MadeBatches
from tests.interfaces.test_memory import CPU, machine, settings

WEIGHTS = {"n_embd": 256, "n_layer": 6, "block_size": 8}
ACTIVATIONS = {"n_embd": 64, "n_layer": 4, "block_size": 128}
DEEP = {"n_embd": 128, "n_layer": 8, "block_size": 128}
CASES: dict[str, RunConfig] = {
    "weights": settings(WEIGHTS, batch_size=2),
    "weights, in passes": settings(WEIGHTS, batch_size=6, micro_batch=1),
    "weights, gradients in bf16": settings(WEIGHTS, batch_size=2, reduce="bf16"),
    "vocabulary": settings({"vocab_size": 16384, "n_embd": 128, "block_size": 8}, batch_size=2),
    "activations": settings(ACTIVATIONS, batch_size=16),
    "activations, recomputed": settings(DEEP, batch_size=16, activation_checkpointing=True),
}


class Same:
    """Batches that are there before a step begins, as one that trains alone reads them."""

    def __init__(self, config: RunConfig, processes: Replicas | Shards) -> None:
        rows = range(config.training.batch_size)[processes.rank :: processes.count]
        self.batch = MadeBatches(config.model).rows(0, rows)

    def rows(self, step: int, rows: Any) -> tuple[Tensor, Tensor]:
        return self.batch


def growth(config: RunConfig, processes: Replicas | Shards) -> int:
    """Of a third step, which runs beside the optimizer's state and, with DDP, the buckets that its second step makes anew."""
    here, batches = machine(), Same(config, processes)
    gc.collect()
    held = devices.memory_held(CPU)
    model = GPT(config.model, here.kernels.ops)
    model.transformer.recomputes_blocks = config.training.activation_checkpointing
    stepper = Stepper(model, config, 10, here.dtype, processes, processes.joined(model))
    for step in range(3):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # counts the peak from here on
        stepper(step, batches)
    return devices.memory_in_use(CPU) - held


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, tuple[int, int]] = {}
    with process_group(CPU, 60):
        for kind in (Replicas, Shards):  # a toy brings what libraries need once, which is no part of the plan
            growth(settings({}), kind(CPU))
        for name, config in CASES.items():
            for kind in (Replicas, Shards):
                processes = kind(CPU, config.training.reduce)
                sharing = Sharing(processes.count, processes.shards)
                planned = plan(config, machine(), evaluates=False, sharing=sharing).peak
                found[f"{name}, {kind.__name__}"] = planned, growth(config, processes)
        rank = processes.rank
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    os._exit(0)  # as the command does

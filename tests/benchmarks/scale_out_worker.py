"""What one process of tests/benchmarks/scale_out.py does: steps whose bytes and seconds it measures, written as JSON.

    python tests/benchmarks/scale_out_worker.py bytes|time RESULT.json SETTINGS-AS-JSON

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set as a launcher would.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from smallgpt.application.evaluation import evaluate
from smallgpt.application.step import Stepper
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.processes import ALONE
from smallgpt.infrastructure.distributed import Replicas, Shards, process_group

CPU = torch.device("cpu")
CASES = [
    ("ddp", "fp32", 1),
    ("ddp", "bf16", 1),
    ("ddp", "fp32", 2),
    ("fsdp2", "fp32", 1),
    ("fsdp2", "bf16", 1),
    ("fsdp2", "fp32", 2),
]
COLLECTIVES: dict[str, Callable[[Tensor, int], Any]] = {
    "all-reduce": lambda x, w: dist.all_reduce(x),
    "all-gather": lambda x, w: dist.all_gather_into_tensor(x, x[: len(x) // w].clone()),
    "reduce-scatter": lambda x, w: dist.reduce_scatter_tensor(x[: len(x) // w].clone(), x),
}


class RandomBatches:
    """Tokens that are quick to make, the same in every process: an application.ports.Batches."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        made = torch.Generator().manual_seed(step)
        shape = (rows.stop, self.config.block_size + 1)
        tokens = torch.randint(self.config.vocab_size, shape, generator=made)[rows.start :: rows.step]
        return tokens[:, :-1], tokens[:, 1:]


def sent_bytes() -> int:
    """By this host's card so far. /sys would tell of the machine's cards."""
    lines = [line.split(":") for line in Path("/proc/self/net/dev").read_text().splitlines() if ":" in line]
    return sum(int(counts.split()[8]) for name, counts in lines if name.strip() != "lo")


@dataclass
class Spent:
    """What this host did between two moments at which all were there."""

    n_bytes: int = 0
    seconds: float = 0.0


@contextmanager
def measured() -> Iterator[Spent]:
    """Bytes that this host's card sends inside, and seconds, filled in at the end. All begin and end together."""
    spent = Spent()
    dist.barrier()
    before, began = sent_bytes(), time.perf_counter()
    yield spent
    spent.seconds = time.perf_counter() - began
    dist.barrier()
    spent.n_bytes = sent_bytes() - before


def stepper(settings: dict[str, Any], way: str, reduce: str, passes: int) -> Stepper:
    """A new model and its optimizer, shared by all; of way "alone" it is this process's, on its rows."""
    w = dist.get_world_size()
    rows = settings["batch_size"] // w
    training = {"batch_size": settings["batch_size"] if way != "alone" else rows, "micro_batch": rows // passes}
    config = RunConfig.model_validate({"model": settings["model"], "training": {**training, "max_steps": 1000}})
    torch.manual_seed(0)
    model = GPT(config.model)
    if way == "alone":
        return Stepper(model, config, 1000, processes=ALONE)
    precision: Literal["fp32", "bf16"] = "bf16" if reduce == "bf16" else "fp32"
    processes = Replicas(CPU, precision) if way == "ddp" else Shards(CPU, precision)
    return Stepper(model, config, 1000, processes=processes, joined=processes.joined(model))


def bytes_of_steps(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of each case, after a step that makes buffers and optimizer state; of its evaluation and its checkpoint."""
    steps = settings["steps"]
    for way, reduce, passes in CASES:
        one = stepper(settings, way, reduce, passes)
        batches = RandomBatches(one.config.model)
        for warm_up in range(2):  # DDP orders its buckets anew after the first
            one(warm_up, batches)
        with measured() as training:
            for step in range(2, 2 + steps):
                one(step, batches)
        found = {"parallel": way, "reduce": reduce, "passes": passes, "sent": training.n_bytes / steps}
        if (reduce, passes) == ("fp32", 1):
            blocks = [batches.rows(0, range(2))] * one.processes.count
            with measured() as evaluating:
                evaluate(one.model, blocks, 1, processes=one.processes)
            with measured() as saving:
                one.state()
            found |= {"evaluation": evaluating.n_bytes, "checkpoint": saving.n_bytes}
        yield found


def bytes_of_collectives(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of each collective on a tensor of 4 MiB."""
    x = torch.zeros(2**20)
    for name, call in COLLECTIVES.items():
        with measured() as spent:
            for _ in range(settings["steps"]):
                call(x, dist.get_world_size())
        yield {"collective": name, "sent": spent.n_bytes / settings["steps"], "tensor": 4 * len(x)}


def seconds_of_steps(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of each case and of computing alone, in turns, so that all share what else the machine does."""
    cases = [("alone", "fp32", 1), *(case for case in CASES if case[2] == 1)]
    steppers = [stepper(settings, *case) for case in cases]
    batches = RandomBatches(steppers[0].config.model)
    times: list[list[float]] = [[] for _ in cases]
    for step in range(settings["rounds"] + 2):
        for number, one in enumerate(steppers):
            with measured() as spent:
                one(step, batches)
            times[number].append(spent.seconds)
    for (way, reduce, _), seconds in zip(cases, times, strict=True):
        yield {"parallel": way, "reduce": reduce, "seconds": seconds[2:]}


def main() -> None:
    """Do what is asked for, and say what was found."""
    what, place, given = sys.argv[1:]
    settings = json.loads(given)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # newer torch has new names for two of COLLECTIVES
    with process_group(CPU, 120):
        if what == "bytes":
            found = [*bytes_of_collectives(settings), *bytes_of_steps(settings)]
        else:
            found = [*seconds_of_steps(settings)]
    Path(place).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    os._exit(0)  # as the command does: an interpreter that is taken down aborts now and then in torch's threads

"""What several processes compute, for one launch of torchrun: writes RANK.json into the folder that it is given."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from smallgpt.application.evaluation import evaluate
from smallgpt.application.step import Stepper
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.processes import Processes
from smallgpt.infrastructure.distributed import Replicas, Shards, process_group
from tests.conftest import MadeBatches

TINY = GPTConfig(block_size=12, vocab_size=61, n_layer=2, n_head=2, n_embd=32, dropout=0.0)
CPU = torch.device("cpu")
STEPS = 4
CASES: dict[str, dict[str, Any]] = {
    "whole batch": {},
    "uneven rows in micro-batches": {"batch_size": 7, "micro_batch": 2},
    "more passes in one process": {"batch_size": 7, "micro_batch": 3},
    "gradients in bf16": {"reduce": "bf16"},
    "clipped": {"clip_norm": 0.1},
}


def settings(**training: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": TINY.model_dump(),
            "training": {"max_steps": STEPS, "batch_size": 8, **training},
            "schedule": {"warmup": 1},
        }
    )


def trained(config: RunConfig, processes: Processes) -> dict[str, Any]:
    """Losses, norms and weights of a run; some targets are missing, more of them in later rows."""
    torch.manual_seed(0)
    model = GPT(config.model)
    batches = MadeBatches(config.model, ignored=lambda row: row)
    stepper = Stepper(model, config, STEPS, processes=processes, joined=processes.joined(model))
    results = [stepper(step, batches) for step in range(STEPS)]
    blocks = [batches.rows(99, range(first, min(first + 3, 13))) for first in range(0, 13, 3)]
    score = evaluate(model, blocks, 1000, processes=processes)
    return {
        "losses": [result.loss for result in results],
        "norms": [result.grad_norm for result in results],
        "tokens": [result.tokens for result in results],
        "weights": {name: processes.whole(p.detach()).double().sum().item() for name, p in model.named_parameters()},
        "state": {
            name: processes.whole(tensor).double().sum().item()
            for name, tensor in stepper.state(shares=True)[1].items()
        },
        "score": [score.nats, score.tokens, score.block_variance, score.blocks],
    }


def main() -> None:
    found: dict[str, Any] = {}
    with process_group(CPU, 60):
        for name, training in CASES.items():
            config = settings(**training)
            for kind in (Replicas, Shards):
                found[f"{name}, {kind.__name__}"] = trained(config, kind(CPU, config.training.reduce))
        processes = Replicas(CPU)
        found["any"] = [processes.any(processes.rank == 1), processes.any(False)]
        found["of first"] = processes.of_first(processes.rank)
        found["of all"] = processes.of_all(processes.rank)
        rank = processes.rank
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    os._exit(0)  # as the command does

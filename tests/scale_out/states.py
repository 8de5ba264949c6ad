"""What several processes save and take up again, for one launch of torchrun: RANK.json and checkpoints in the given folder."""

import json
import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from smallgpt.application.step import Stepper
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.processes import ALONE, Processes
from smallgpt.domain.state import Held, TrainingState
from smallgpt.domain.trainable import choose_trainable
from smallgpt.infrastructure.distributed import Replicas, Shards, process_group
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.sharded_checkpoints import ShardedCheckpoints, read_shares
from tests.conftest import MadeBatches

ODD = GPTConfig(block_size=2, vocab_size=61, n_layer=2, n_head=1, n_embd=20, dropout=0.0)
"""Nothing of it divides by 3, and the position table has fewer rows than that."""
CPU = torch.device("cpu")
CASES: dict[str, tuple[type[Replicas] | type[Shards], dict[str, Any]]] = {
    "replicas": (Replicas, {}),
    "shards": (Shards, {}),
    "replicas-muon": (Replicas, {"optimizer": {"name": "muon"}}),
    "replicas-lora": (Replicas, {"training": {"lora_rank": 2, "init": "x"}}),
    "shards-frozen": (Shards, {"training": {"freeze": "blocks.0"}}),
}
STEPS = 6


def settings(case: str) -> RunConfig:
    own = CASES[case][1]
    training = {"max_steps": STEPS, "batch_size": 6, **own.get("training", {})}
    return RunConfig.model_validate({"model": ODD.model_dump(), "schedule": {"warmup": 1}, **own, "training": training})


def stepper_of(config: RunConfig, processes: Processes, seed: int) -> Stepper:
    torch.manual_seed(seed)
    model = GPT(config.model)
    choose_trainable(model, config.training)
    return Stepper(model, config, STEPS, processes=processes, joined=processes.joined(model))


def trained(case: str, processes: Processes, steps: int = 2) -> Stepper:
    config = settings(case)
    stepper, batches = stepper_of(config, processes, 0), MadeBatches(config.model)
    for step in range(steps):
        stepper(step, batches)
    return stepper


def same(one: Held, other: Held) -> bool:
    """To the bit, in what this process holds."""
    return all(a.keys() == b.keys() and all(_equal(a[n], b[n]) for n in a) for a, b in zip(one, other, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    a, b = (x.to_local() if isinstance(x, DTensor) else x for x in (a, b))
    return torch.equal(a, b)


def keeper(folder: Path, processes: Processes) -> ShardedCheckpoints:
    return ShardedCheckpoints(RunFolder(folder), ODD, None, 2, processes, 60)


def found_out(case: str, folder: Path) -> dict[str, bool]:
    processes = CASES[case][0](CPU)
    before = trained(case, processes)
    whole = before.state()
    if processes.rank == 0:
        save_file(
            {name: tensor.contiguous() for part in whole for name, tensor in part.items()}, folder / f"{case}.whole"
        )

    after = stepper_of(settings(case), processes, 100 + processes.rank)
    after.restore(deepcopy(whole), {})
    answers = {"gathered and spread": same(before.state(shares=True), after.state(shares=True))}
    if "lora" not in case:
        state = TrainingState(2, *before.state(shares=True), {}, shares=True)
        checkpoints = keeper(folder / case, processes)
        checkpoints.save(state)
        path = Path(checkpoints.kept(2))
        third = stepper_of(settings(case), processes, 200 + processes.rank)
        third.restore(read_shares(path, third.model, third.optimizers), {}, shares=True)
        answers["written and read in shares"] = same(before.state(shares=True), third.state(shares=True))
        fourth = stepper_of(settings(case), processes, 300 + processes.rank)
        [made_alone] = (folder / f"{case}-alone" / "checkpoints").glob("step-*")
        fourth.restore(read_shares(made_alone, fourth.model, fourth.optimizers), {}, shares=True)
        alone = trained(case, ALONE)
        gathered = fourth.state()
        if processes.rank == 0:
            answers["read what one process wrote"] = same(gathered, alone.state())
    batches = MadeBatches(ODD)
    answers["goes on alike"] = all(before(step, batches) == after(step, batches) for step in range(2, 4))
    return answers


def main() -> None:
    folder = Path(sys.argv[1])
    with process_group(CPU, 60):
        found = {case: found_out(case, folder) for case in CASES}
        rank = Replicas(CPU).rank
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    os._exit(0)  # as the command does

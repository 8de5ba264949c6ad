"""Ways of fine-tuning beside each other: what they reach on new data, what is left of the old, and what they cost.

    python tests/benchmarks/fine_tuning.py BASE NEW_DATA OLD_DATA [--steps 150] [--json FILE]

NEW_DATA is prepared with BASE's tokenizer. Every run does the same steps on the same batches of NEW_DATA. A step's time is the
median of rounds in which every way does one step, so that what else the machine does is shared.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from smallgpt.domain.config import RunConfig
from smallgpt.domain.processes import ALONE
from smallgpt.domain.trainable import n_trained
from smallgpt.infrastructure.provenance import record
from smallgpt.infrastructure.token_store import TokenStore, open_store
from smallgpt.infrastructure.trackers import Several
from smallgpt.interfaces import composition
from smallgpt.interfaces.looking import evaluate_split
from smallgpt.interfaces.machine import choose_machine
from smallgpt.interfaces.opening import OpenedModel, open_model
from smallgpt.interfaces.run_parts import RunParts, new_model, view_of
from smallgpt.interfaces.starting import with_model_of

OLD_TOKENS = 20_000
ROUNDS = 15


class Way(NamedTuple):
    """What is trained, and at which peak rates it is tried."""

    trained: str
    rates: tuple[float, ...]
    settings: dict[str, Any]


WAYS = [
    Way("everything, from scratch", (1e-3, 3e-3), {}),
    Way("everything", (3e-4, 1e-3, 3e-3), {}),
    Way("all but the embeddings", (1e-3,), {"freeze": "embeddings"}),
    Way("the last block", (3e-3,), {"freeze": "embeddings,blocks.0-1,norms"}),
    Way("LoRA, rank 8", (1e-3, 3e-3, 1e-2), {"lora_rank": 8}),
    Way("LoRA, rank 8, c_attn", (1e-2,), {"lora_rank": 8, "lora_targets": "c_attn"}),
]


def configuration(way: Way, rate: float, steps: int, base: OpenedModel, store: TokenStore, scratch: bool) -> RunConfig:
    training = {"max_steps": steps, "batch_size": 16, "init": str(base.path), **way.settings}
    looks = {"evaluation": {"every": 0, "sample_every": 0}, "checkpoint": {"every": 0, "keep": 1}}
    config = RunConfig.model_validate({"training": training, "optimizer": {"learning_rate": rate}, **looks})
    config = with_model_of(config, base)
    if scratch:
        config = config.model_copy(update={"training": config.training.model_copy(update={"init": None})})
    return composition.resolve(config, store, vocab_size_given=True)


def tried(base: OpenedModel, new: TokenStore, old: TokenStore, steps: int) -> Iterator[dict[str, Any]]:
    before = evaluate_split(base.model, new, "validation").nats_per_token
    remembered = evaluate_split(base.model, old, "validation", max_tokens=OLD_TOKENS).nats_per_token
    yield {"trained": "nothing", "nats_per_token": before, "nats_per_token_of_old_data": remembered}
    for way in WAYS:
        for rate in way.rates:
            yield {"trained": way.trained, "learning_rate": rate, **_run(way, rate, steps, base, new, old)}


def _run(way: Way, rate: float, steps: int, base: OpenedModel, new: TokenStore, old: TokenStore) -> dict[str, Any]:
    scratch = way is WAYS[0]
    config = configuration(way, rate, steps, base, new, scratch)
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        start = None if scratch else open_model(base.path)  # training goes on in its memory
        outcome = composition.train(config, new, run, start=start)
        checkpoint = run / "checkpoints" / f"step-{outcome.step:08d}"
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
        trained = open_model(run).model
        remembered = evaluate_split(trained, old, "validation", max_tokens=OLD_TOKENS).nats_per_token
    assert outcome.final is not None
    return {
        "nats_per_token": outcome.final.nats_per_token,
        "nats_per_token_of_old_data": remembered,
        "checkpoint_bytes": size,
    }


def costs(base: OpenedModel, store: TokenStore) -> dict[str, dict[str, float]]:
    """By way: parameters that are trained, and milliseconds of a step."""
    steppers, batches = {}, {}
    costs: dict[str, dict[str, float]] = {}
    for way in WAYS[1:]:
        config = configuration(way, 1e-4, ROUNDS, base, store, scratch=False)
        machine = choose_machine(config)
        model = new_model(config, machine, open_model(base.path)).to(machine.device)
        view = view_of(config, store, config.model.block_size)
        parts = RunParts(config, store, machine, view, model, Several([]), lambda: False, ALONE, model, captures=False)
        steppers[way.trained], batches[way.trained] = parts.stepper(ROUNDS), parts.batches(0)
        costs[way.trained] = {"trained_parameters": n_trained(model)}
    times: dict[str, list[float]] = {trained: [] for trained in steppers}
    for step in range(ROUNDS):
        for trained, stepper in steppers.items():
            start = time.perf_counter()
            stepper(step, batches[trained])
            times[trained].append(1000 * (time.perf_counter() - start))
    for trained, found in times.items():
        costs[trained]["step_ms"] = median(found[1:])
    costs[WAYS[0].trained] = costs[WAYS[1].trained]
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("old", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    base, new, old = open_model(arguments.base), open_store(arguments.new), open_store(arguments.old)
    cost = costs(base, new)
    rows = [{**row, **cost.get(row["trained"], {})} for row in tried(base, new, old, arguments.steps)]
    settings = {"new_tokens": len(new.tokens("train")), "steps": arguments.steps, "tokens_per_step": 16 * 128}
    figures = record(settings, rows)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

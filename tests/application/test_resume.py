"""A run that was cut off anywhere and resumed is, to the bit, the run that was not. On real files."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt.application.training import Loop
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.errors import SmallGPTError
from smallgpt.infrastructure.checkpoints import RunCheckpoints, load_checkpoint, newest_good
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.trackers import JsonLines

MakeLoop = Callable[..., Loop]
STEPS = 12
CLOCK = {"seconds", "tokens_per_second", "mfu", "memory_bytes", "eta_seconds", "path"}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("fp32", {"schedule": {"name": "cosine"}}),
    "muon": ("fp32", {"optimizer": {"name": "muon"}, "schedule": {"name": "wsd", "warmup": 3}}),
    "frozen": ("fp32", {"optimizer": {"name": "muon"}, "training": {"freeze": "embeddings,blocks.0"}}),
    "lora": ("fp32", {"training": {"lora_rank": 2, "lora_targets": "c_attn,mlp.c_proj"}}),
    "fp16": ("fp16", {"schedule": {"name": "warm-restarts", "restart": 5, "warmup": 2}}),
}


@dataclass
class Files:
    """The run's folder as the loop's checkpoints and tracker."""

    run: RunFolder
    checkpoints: RunCheckpoints
    lines: JsonLines
    shards: bool = False

    def log(self, event: dict[str, Any]) -> None:
        self.lines.log(event)

    def save(self, state: Any) -> None:
        self.checkpoints.save(state)

    def kept(self, step: int) -> str | None:
        return self.checkpoints.kept(step)

    def finish(self) -> None:
        self.checkpoints.finish()

    def mark_best(self, step: int) -> None:
        self.checkpoints.mark_best(step)


@dataclass
class Result:
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    numbers: dict[str, Any]
    events: list[dict[str, Any]]
    best: str


@dataclass
class Runs:
    """Runs of one variant, each interrupted as it is told."""

    variant: str
    model: GPTConfig
    make_loop: MakeLoop

    def config(self) -> RunConfig:
        plain: dict[str, Any] = {
            "evaluation": {"every": 3, "sample_every": 5},
            "checkpoint": {"every": 4, "keep": 2},
        }
        model = self.model.model_copy(update={"dropout": 0.1})
        own = VARIANTS[self.variant][1]
        training = {"batch_size": 4, "max_steps": STEPS, **own.get("training", {})}
        return RunConfig.model_validate({"model": model, **plain, **own, "training": training})

    def sit(self, folder: Path, **interruption: int | None) -> Loop:
        """Start, or resume when there is a checkpoint; end when interrupted or finished."""
        run, config = RunFolder(folder), self.config()
        folder.mkdir(exist_ok=True)
        state = None
        if run.checkpoints():
            state = load_checkpoint(newest_good(run)[0])
            run.forget_after(state.step)
        files = Files(run, RunCheckpoints(run, config.model, None, config.checkpoint.keep), JsonLines(run.metrics_file))
        loop = self.make_loop(config, files, state=state, precision=DTYPES[VARIANTS[self.variant][0]], **interruption)
        try:
            with (
                pytest.raises(SmallGPTError, match="the power went out")
                if interruption.get("die_at")
                else nullcontext()
            ):
                loop.run()
        finally:
            files.lines.close()
        return loop

    def result(self, folder: Path, loop: Loop) -> Result:
        assert loop.step == STEPS
        events = [
            {key: value for key, value in event.items() if key not in CLOCK}
            for event in RunFolder(folder).metrics()
            if event["event"] in ("train", "validation", "sample", "skip")
        ]
        best = (folder / "checkpoints" / "best.json").read_text()
        numbers = {
            "scaler": loop.stepper.scaler.state_dict(),
            "counted": (loop.tokens, loop.skipped, loop.skipped_in_a_row, loop.best),
        }
        return Result(loop.stepper.model.state_dict(), loop.stepper.state()[1], numbers, events, best)


@pytest.fixture(scope="module")
def finished() -> dict[str, Result]:
    """The uninterrupted run of each variant, made once."""
    return {}


@pytest.fixture(params=VARIANTS)
def runs(request: pytest.FixtureRequest, tiny: GPTConfig, make_loop: MakeLoop) -> Runs:
    return Runs(request.param, tiny, make_loop)


@pytest.fixture
def uninterrupted(runs: Runs, finished: dict[str, Result], tmp_path: Path) -> Result:
    if runs.variant not in finished:
        finished[runs.variant] = runs.result(tmp_path / "whole", runs.sit(tmp_path / "whole"))
    return finished[runs.variant]


def assert_identical(found: Result, expected: Result) -> None:
    for ours, theirs in ((found.weights, expected.weights), (found.optimizer, expected.optimizer)):
        assert set(ours) == set(theirs)
        assert not {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert found.numbers == expected.numbers
    assert found.events == expected.events
    assert found.best == expected.best


INTERRUPTIONS: list[list[dict[str, int]]] = [
    [{"stop_at": 0}],  # before the first step
    [{"stop_at": 1}],
    [{"stop_at": 3}],  # at a validation, which is then due again
    [{"stop_at": 4}],  # right after a checkpoint
    [{"stop_at": 5}],  # at a sample
    [{"stop_at": 7}],  # right before a checkpoint
    [{"stop_at": 11}],
    [{"stop_at": 12}],  # when there is nothing left to do
    [{"die_at": 4}],  # killed after a checkpoint and what was due there
    [{"die_at": 7}],  # killed with three steps recorded that no checkpoint has
    [{"die_at": 11}],
    [{"stop_at": 2}, {"stop_at": 2}, {"die_at": 6}, {"stop_at": 9}, {"die_at": 10}, {"stop_at": 11}],
]


@pytest.mark.parametrize("interruptions", INTERRUPTIONS, ids=str)
def test_resumed_is_uninterrupted(
    runs: Runs, uninterrupted: Result, tmp_path: Path, interruptions: list[dict[str, int]]
) -> None:
    folder = tmp_path / "run"
    for interruption in interruptions:
        runs.sit(folder, **interruption)
    assert_identical(runs.result(folder, runs.sit(folder)), uninterrupted)


def test_the_runs_compared_have_something_to_lose(uninterrupted: Result, runs: Runs) -> None:
    kinds = {event["event"] for event in uninterrupted.events}
    assert kinds == {"train", "validation", "sample"} | ({"skip"} if runs.variant == "fp16" else set())
    assert len({event["loss"] for event in uninterrupted.events if event["event"] == "train"}) == STEPS


def test_resuming_a_finished_run_changes_nothing(runs: Runs, uninterrupted: Result, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.sit(folder)
    assert_identical(runs.result(folder, runs.sit(folder)), uninterrupted)


def test_a_damaged_newest_checkpoint_costs_time_and_nothing_else(
    runs: Runs, uninterrupted: Result, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    runs.sit(folder, stop_at=10)
    with (folder / "checkpoints" / "step-00000010" / "optimizer.safetensors").open("r+b") as file:
        file.truncate(100)
    path, problems = newest_good(RunFolder(folder))
    assert path.name == "step-00000008"
    assert len(problems) == 1
    assert_identical(runs.result(folder, runs.sit(folder)), uninterrupted)


def test_checkpoints_that_exist_are_on_record(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for interruption in ({"stop_at": 4}, {"stop_at": 6}, {}):
        runs.sit(folder, **interruption)
    steps = [event["step"] for event in RunFolder(folder).metrics() if event["event"] == "checkpoint"]
    assert steps == [4, 6, 8, 12]


def test_the_clock_goes_on_where_it_stopped(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.sit(folder, stop_at=6)
    runs.sit(folder)
    train = [event for event in RunFolder(folder).metrics() if event["event"] == "train"]
    seconds = [event["seconds"] for event in train]
    assert seconds == sorted(seconds)
    assert [event["tokens"] for event in train] == [48 * step for step in range(1, STEPS + 1)]

"""What goes wrong in one process ends all of them soon, with its own words, and loses nothing that was saved."""

import json
from pathlib import Path
from typing import Any

import pytest

from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces.cli import main
from tests.scale_out.conftest import Launch, Launched
from tests.scale_out.small_run import TINY, assert_same_losses, events, losses

FAULTY = str(Path(__file__).with_name("faulty.py"))
STEPS = 12
AT_ONCE = 30.0  # seconds from a fault to the end

pytestmark = pytest.mark.slow


def train(
    launch: Launch, made: Path, run: str, fault: dict[str, Any], *words: str, n: int = 2, restarts: int = 0
) -> Launched:
    command = ["train", "--data", "data", "--out", f"runs/{run}", f"--training.max-steps={STEPS}", *TINY, *words]
    fault = {"rank": 1, "stamp": str(made / f"{run}.failed"), **fault}
    return launch(n, FAULTY, *command, options=(f"--max-restarts={restarts}",), cwd=made, FAULT=json.dumps(fault))


def assert_ended_soon(made: Path, run: str, done: Launched) -> None:
    """After the fault; what came before it, imports first of all, is not counted."""
    assert 0 < done.ended - float((made / f"{run}.failed").read_text()) < AT_ONCE


@pytest.mark.parametrize("where", ["forward", "all-reduce", "evaluate", "save"])
def test_a_killed_process_ends_the_others(launch: Launch, made: Path, where: str) -> None:
    done = train(launch, made, f"killed-{where}", {"step": 3, "where": where, "how": "kill"})
    assert done.code == 1
    assert_ended_soon(made, f"killed-{where}", done)
    assert "smallgpt: the other processes were lost" in done.err
    assert "Signal 9 (SIGKILL)" in done.err, "torchrun says of the one that cannot"
    assert "internal error" not in done.err


def test_an_error_in_one_process_is_told_in_its_words(launch: Launch, made: Path) -> None:
    done = train(launch, made, "raised", {"step": 5, "where": "forward", "how": "raise"})
    assert done.code == 1
    assert_ended_soon(made, "raised", done)
    assert "ZeroDivisionError: only here" in done.err
    assert [path.name for path in RunFolder(made / "runs" / "raised").checkpoints()] == ["step-00000004"]


def test_a_process_that_hangs_is_not_waited_for_longer_than_asked(launch: Launch, made: Path) -> None:
    done = train(launch, made, "hung", {"step": 5, "where": "forward", "how": "hang"}, "--training.process-timeout=5")
    assert done.code == 1
    assert "smallgpt: the other processes were lost or took more than 5 s" in done.err
    assert done.ended - float((made / "hung.failed").read_text()) < 5 + 30 + AT_ONCE, "30 s: until torchrun kills it"


def test_nan_in_one_process_is_skipped_by_all(launch: Launch, made: Path) -> None:
    fault = {"step": 5, "where": "forward", "how": "nan"}
    done = train(launch, made, "nan", fault, "--training.max-skipped=3")
    assert "smallgpt: 3 steps in a row were not finite, the last at step 8" in done.err
    assert [event["step"] for event in events(made, "nan", "skip")] == [6, 7, 8]


def test_torchrun_restarts_from_the_last_checkpoint(launch: Launch, made: Path) -> None:
    done = train(launch, made, "restarted", {"step": 6, "where": "forward", "how": "kill"}, restarts=1)
    assert done.code == 0, done.err
    assert "resumed  from step 4" in done.out
    assert_same_losses(made, "restarted")


def test_a_fine_tuned_run_is_restarted_too(launch: Launch, made: Path) -> None:
    """Its sizes come from the model that it started from, which the restart does not open again."""
    start = "--init=runs/alone"
    fault = json.dumps({"rank": 1, "step": 6, "where": "forward", "how": "kill"})
    words = ["train", "--data", "data", "--out", "runs/tuned", start, *[w for w in TINY if "model" not in w]]
    done = launch(
        2, FAULTY, *words, f"--training.max-steps={STEPS}", options=("--max-restarts=1",), cwd=made, FAULT=fault
    )
    assert done.code == 0, done.err
    assert "resumed  from step 4" in done.out
    assert len(losses(made, "tuned")) == STEPS


def test_a_stop_asked_of_one_process_stops_all_at_one_step(launch: Launch, made: Path) -> None:
    done = train(launch, made, "stopped", {"step": 5, "where": "forward", "how": "terminate"})
    assert "stopped after step 6 and saved" in done.out
    assert [path.name for path in RunFolder(made / "runs" / "stopped").checkpoints()] == [
        "step-00000004",
        "step-00000006",
    ]
    with pytest.MonkeyPatch.context() as patch:  # and one process goes on where two were
        patch.chdir(made)
        with pytest.raises(SystemExit) as left:
            main(["train", "--resume", "runs/stopped"])
    assert left.value.code == 0
    assert_same_losses(made, "stopped")


def test_shards_are_saved_whole_and_resumed_by_another_number(launch: Launch, made: Path) -> None:
    sharded = "--training.parallel=fsdp2"
    train(launch, made, "sharded", {"step": 5, "where": "forward", "how": "terminate"}, sharded, n=4)
    assert RunFolder(made / "runs" / "sharded").checkpoints()[-1].name == "step-00000006"
    done = launch(3, FAULTY, "train", "--resume", "runs/sharded", sharded, cwd=made, FAULT='{"rank": -1}')
    assert done.code == 0, done.err
    assert_same_losses(made, "sharded")


def test_processes_with_different_settings_are_refused(launch: Launch, made: Path) -> None:
    done = train(launch, made, "different", {"words": ["--training.clip-norm=0.5"]})
    assert "processes 0 and 1 have different settings: training.clip_norm 1.0 and 0.5" in done.err
    assert not (made / "runs" / "different").exists()

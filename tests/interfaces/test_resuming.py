"""A run that goes on with other settings than it began with."""

import json
from pathlib import Path

import pytest

from tests.infrastructure.texts import write_texts
from tests.interfaces.conftest import Run, leave

TINY = ["--model.n-layer=1", "--model.n-head=2", "--model.n-embd=16", "--model.block-size=32", "--model.dropout=0"]
TINY += ["--training.batch-size=4", "--training.threads=1", "--training.precision=fp32", "--training.compile=off"]
TINY += ["--evaluation.sample-every=0", "--evaluation.every=0"]
TEXTS = [f"Once Tom had {n} hats and {n * 3} kites." for n in range(60)]
MINUTES = "--training.max-minutes=0.2"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_texts(TEXTS, TEXTS[:9], Path("data"), name="data")
    return tmp_path


def marked(run: str) -> str:
    name: str = json.loads(Path(run, "checkpoints", "best.json").read_text())["checkpoint"]
    return name


@pytest.mark.parametrize("every", ["0", "2", "3"])
def test_the_best_checkpoint_stays_the_best_until_a_better_one_comes(here: Path, every: str) -> None:
    standing_still = ["--optimizer.learning-rate=1e-30", "--checkpoint.keep=1", "--checkpoint.every=0"]
    assert leave("train", "--data=data", "--out=run", "--training.max-steps=3", *TINY, *standing_still) == 0
    assert marked("run") == "step-00000003"
    assert leave("train", "--resume=run", "--training.max-steps=7", f"--checkpoint.every={every}") == 0
    assert marked("run") == "step-00000003"
    assert sorted(path.name for path in Path("run/checkpoints").glob("step-*")) == ["step-00000003", "step-00000007"]


def test_a_better_one_is_marked_after_it_went_on(here: Path) -> None:
    assert leave("train", "--data=data", "--out=run", "--training.max-steps=3", *TINY, "--checkpoint.every=0") == 0
    assert leave("train", "--resume=run", "--training.max-steps=12", "--checkpoint.every=5") == 0
    assert marked("run") == "step-00000012"


def test_minutes_plan_a_run_that_begins_and_none_that_goes_on(here: Path, run: Run) -> None:
    assert leave("train", "--data=data", "--out=run", "--training.max-steps=3", *TINY) == 0
    before = Path("run/config.toml").read_text()
    code, _, err = run("train", "--resume=run", MINUTES)
    assert code == 2
    assert "training.max_minutes (0.2) plans a run when it begins" in err
    assert "--training.max-steps" in err
    assert Path("run/config.toml").read_text() == before


def test_a_run_planned_by_minutes_goes_on_to_its_plan_or_to_a_number_of_steps(here: Path, run: Run) -> None:
    short = "--training.max-minutes=0.01"
    assert leave("train", "--data=data", "--out=run", short, "--checkpoint.every=0.3", *TINY) == 0
    events = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    (planned,) = (event["steps"] for event in events if event["event"] == "plan")
    assert run("train", "--resume=run", short)[0] == 0  # as the launcher's restart gives it once more
    assert leave("train", "--resume=run", f"--training.max-steps={planned + 2}") == 0
    assert marked("run").startswith("step-")
    assert Path("run/checkpoints", f"step-{planned + 2:08}").is_dir()

"""What a model card is told of a run."""

import json
from pathlib import Path

import pytest

from smallgpt.domain.config import DataConfig, GPTConfig, RunConfig
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces.run_figures import run_figures

EVENTS = [
    {"event": "train", "step": 5, "tokens": 1000},
    {"event": "validation", "step": 5, "nats_per_token": 3.0, "bits_per_byte": 2.0, "tokens": 50},
    {"event": "train", "step": 10, "tokens": 2048},
    {"event": "validation", "step": 10, "nats_per_token": 2.0, "bits_per_byte": 1.5, "tokens": 50},
    {"event": "validation", "step": 10, "nats_per_token": 1.98766, "bits_per_byte": 1.43219, "tokens": 12345},
    {"event": "end", "step": 10},
]


@pytest.fixture
def run(tmp_path: Path, tiny: GPTConfig) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.write_config(RunConfig(model=tiny, data=DataConfig(path=tmp_path / "letters-bpe")))
    run.metrics_file.write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    return run


def test_the_last_figures_of_the_checkpoints_own_step(run: RunFolder) -> None:
    assert run_figures(run, 10) == {
        "data": "letters-bpe",
        "steps": "10",
        "tokens trained on": "2,048",
        "nats per token": "1.9877 on 12,345 validation tokens",
        "bits per byte": "1.4322",
    }
    assert run_figures(run, 5)["bits per byte"] == "2.0000"


def test_what_the_record_does_not_have_is_left_out(run: RunFolder) -> None:
    assert run_figures(run, 7) == {"data": "letters-bpe"}
    run.metrics_file.write_text(json.dumps({**EVENTS[4], "bits_per_byte": None}) + "\n")
    assert "bits per byte" not in run_figures(run, 10)
    run.metrics_file.unlink()
    run.write_config(RunConfig(model=run.config().model))
    assert run_figures(run, 10) == {}

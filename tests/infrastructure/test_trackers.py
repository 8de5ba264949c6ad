"""Events on their way out: lines always, and the three trackers people ask for."""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smallgpt.domain.errors import ConfigError
from smallgpt.infrastructure.trackers import JsonLines, Scalars, Several, open_tracker

TRAIN = {"event": "train", "step": 3, "loss": 2.5, "tokens": 96, "note": "text", "flag": True, "range": [1.0, 2.0]}


def test_every_event_is_a_line_that_a_reader_can_follow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.log(TRAIN)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [TRAIN], "flushed at once"
    lines.close()
    again = JsonLines(path)
    again.log({"event": "end", "step": 3})
    again.close()
    assert len(path.read_text().splitlines()) == 2, "appended, not begun anew"


class Ear:
    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.closed = 0

    def log(self, event: dict[str, Any]) -> None:
        self.heard.append(event)


class ClosableEar(Ear):
    def close(self) -> None:
        self.closed += 1


def test_all_trackers_hear_everything_and_those_that_can_are_closed() -> None:
    ears = [Ear(), ClosableEar()]
    several = Several([*ears])
    several.log(TRAIN)
    several.close()
    assert [ear.heard for ear in ears] == [[TRAIN], [TRAIN]]
    assert ears[1].closed == 1


def test_only_numbers_of_steps_and_evaluations_are_sent() -> None:
    sent: list[tuple[dict[str, float], int]] = []
    scalars = Scalars(lambda numbers, step: sent.append((numbers, step)), lambda: None)
    scalars.log(TRAIN)
    scalars.log({"event": "validation", "step": 3, "nats_per_token": 2.0, "bits_per_byte": None})
    scalars.log({"event": "sample", "step": 3, "text": "Once"})
    scalars.log({"event": "start", "step": 0, "parameters": 5})
    assert sent == [({"train/loss": 2.5, "train/tokens": 96.0}, 3), ({"validation/nats_per_token": 2.0}, 3)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_what_was_logged(tmp_path: Path) -> None:
    tracker = open_tracker("tensorboard", tmp_path, {"model": {"n_layer": 2}})
    tracker.log(TRAIN)
    tracker.close()
    reader: Any = import_module("tensorboard.backend.event_processing.event_accumulator")
    written = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    written.Reload()
    assert [(point.step, point.value) for point in written.Scalars("train/loss")] == [(3, 2.5)]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_the_hosted_trackers_get_the_run_its_settings_and_its_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def init(**settings: Any) -> SimpleNamespace:
        calls.append(settings)
        return SimpleNamespace(
            log=lambda numbers, step: calls.append((numbers, step)), finish=lambda: calls.append("finished")
        )

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init))
    tracker = open_tracker(name, tmp_path / "my-run", {"seed": 1})
    tracker.log(TRAIN)
    tracker.close()
    settings, numbers, end = calls
    assert (settings["project"], settings["name"], settings["config"]) == ("smallgpt", "my-run", {"seed": 1})
    assert numbers == ({"train/loss": 2.5, "train/tokens": 96.0}, 3)
    assert end == "finished"


def test_a_tracker_that_is_unknown_missing_or_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown tracker 'mlflow'; use tensorboard, trackio, wandb"):
        open_tracker("mlflow", tmp_path, {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"--track wandb needs a package: pip install 'smallgpt\[track\]'"):
        open_tracker("wandb", tmp_path, {})

    def init(**settings: Any) -> None:
        raise RuntimeError("api_key not configured\nmore")

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))
    with pytest.raises(ConfigError, match="--track trackio cannot start: api_key not configured"):
        open_tracker("trackio", tmp_path, {})

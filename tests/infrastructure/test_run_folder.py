"""A run's folder: its configuration, its events, its lock."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.trackers import JsonLines


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_every_setting_survives(run: RunFolder, tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "model": {"n_layer": 3, "bias": False},
            "data": {"path": tmp_path / "däta"},
            "training": {"max_minutes": 0.5, "precision": "bf16"},
            "optimizer": {"learning_rate": 1e-4},
            "evaluation": {"prompt": 'Once "upon"\na time \\ ☃'},
        }
    )
    run.write_config(config)
    assert run.config() == config
    assert "null" not in run.config_file.read_text()
    run.write_config(RunConfig())
    assert run.config() == RunConfig()


def test_the_tokenizer_of_a_corpus_is_not_said_to_be_a_folders(run: RunFolder, tmp_path: Path) -> None:
    run.write_config(RunConfig.model_validate({"data": {"path": tmp_path}}))
    assert not {"tokenizer", "vocab_size"} & tomllib.loads(run.config_file.read_text())["data"].keys()
    prepared = RunConfig.model_validate({"data": {"corpus": "demo", "tokenizer": "bpe", "vocab_size": 300}})
    run.write_config(prepared)
    assert run.config() == prepared


@pytest.mark.parametrize(
    "content",
    [
        b"[model",
        b"[model]\nn_heads = 4",
        b"[model]\nn_layer = 0",
        b"\xff\xfe",
        b'model = "large"',
        b"a = " + b"[" * 5000,
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(run: RunFolder, content: bytes) -> None:
    run.path.mkdir()
    run.config_file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.toml cannot be read"):
        run.config()


def test_a_folder_that_is_no_run_says_how_to_get_one(run: RunFolder) -> None:
    with pytest.raises(CheckpointError, match=r"is no run: it has no config\.toml.*smallgpt train"):
        run.config()


def test_events_come_back_in_order_without_a_last_line_cut_short(run: RunFolder) -> None:
    assert run.metrics() == []
    run.path.mkdir()
    lines = JsonLines(run.metrics_file)
    for step in range(3):
        lines.log({"event": "train", "step": step, "text": "Zoë said\n“hello”"})
    lines.close()
    whole = run.metrics_file.read_text()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        run.metrics_file.write_text(whole[:-cut])
        assert [event["step"] for event in run.metrics()][:2] == [0, 1]
        assert len(run.metrics()) == (3 if cut == 1 else 2)


def test_what_a_resumed_run_will_write_again_is_forgotten(run: RunFolder) -> None:
    run.path.mkdir()
    events = [
        {"event": "start", "step": 0},
        {"event": "plan", "step": 0},
        {"event": "validation", "step": 0},
        *[{"event": "train", "step": step} for step in (1, 2, 3, 4)],
        {"event": "checkpoint", "step": 4},
        {"event": "validation", "step": 4},
        {"event": "sample", "step": 4},
        {"event": "train", "step": 5},
        {"event": "skip", "step": 5},
        {"event": "end", "step": 5},
    ]
    run.metrics_file.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "tra')
    run.forget_after(4)
    assert run.metrics() == events[:8]
    assert run.metrics_file.read_text().endswith("}\n"), "the next event starts a line of its own"
    run.forget_after(0)
    assert run.metrics() == events[:2]


def test_unfinished_checkpoints_are_not_listed(run: RunFolder) -> None:
    for name in ("step-00000002", "step-00000010", ".step-00000020.77.tmp", ".step-00000010.77.old.tmp"):
        (run.checkpoints_folder / name).mkdir(parents=True)
    assert [path.name for path in run.checkpoints()] == ["step-00000002", "step-00000010"]


HOLD = """
import sys
import tomllib
from pathlib import Path
from smallgpt.infrastructure.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_has_one_writer(run: RunFolder) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=rf"in use by process {other.pid} on .*--out"):
            run.lock()
        other.kill()  # however a process ends, its lock ends with it
        other.wait()
        with run.lock(), pytest.raises(CheckpointError, match="in use"):
            run.lock()
    with run.lock():
        pass

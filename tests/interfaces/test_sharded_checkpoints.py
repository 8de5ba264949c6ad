"""A run whose checkpoints are in shards, by one process here: every command takes them as it takes others.

tests/scale_out/test_states.py has several processes.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smallgpt.infrastructure.checkpoints import read_weights
from smallgpt.infrastructure.run_folder import RunFolder
from tests.interfaces.conftest import Run, leave

TINY = [
    "--model.n-layer=2",
    "--model.n-head=2",
    "--model.n-embd=16",
    "--model.block-size=16",
    "--training.threads=1",
    "--training.batch-size=4",
    "--training.precision=fp32",
    "--evaluation.sample-every=0",
    "--checkpoint.every=2",
    "--training.max-steps=8",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, and runs whole and sharded of the same training."""
    place = tmp_path_factory.mktemp("sharded")
    (place / "text.txt").write_text("\n<|endoftext|>\n".join(f"Mia has {n} hats." for n in range(300)))
    assert leave("prepare", "text", str(place / "text.txt"), "--tokenizer", "bytes", "--out", str(place / "data")) == 0
    for name, own in {"whole": [], "sharded": ["--checkpoint.sharded"]}.items():
        assert leave("train", "--data", str(place / "data"), "--out", str(place / name), *TINY, *own) == 0
    return place


def newest(run: Path) -> Path:
    return RunFolder(run).checkpoints()[-1]


def losses(run: Path) -> list[Any]:
    return [(event["step"], event["loss"]) for event in RunFolder(run).metrics() if event["event"] == "train"]


def test_shards_hold_the_same_model(place: Path) -> None:
    names = [path.name for path in newest(place / "sharded").iterdir()]
    assert "model.safetensors" not in names
    assert [name for name in names if name.startswith("shard-00001")]
    ours, theirs = read_weights(newest(place / "sharded")), read_weights(newest(place / "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(RunFolder(place / "sharded").checkpoints()) == 2, "and old ones are removed"


def test_a_run_goes_on_from_shards_as_from_a_whole_checkpoint(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "cut"
    assert leave("train", "--data", str(place / "data"), "--out", str(run), *TINY, "--checkpoint.sharded") == 0
    for path in (newest(run), run / "report.html"):  # as if it had been killed after step 6
        path.rename(tmp_path / path.name)
    assert newest(run).name == "step-00000006"
    assert leave("train", "--resume", str(run), "--checkpoint.sharded=false") == 0
    assert losses(run) == losses(place / "whole")
    assert (newest(run) / "model.safetensors").exists(), "and saves as it is told now"


def test_every_command_takes_shards(place: Path, tmp_path: Path, run: Run) -> None:
    found = [json.loads(run("evaluate", str(place / name), "--json")[1]) for name in ("whole", "sharded")]
    assert found[0] == found[1]
    code, out, err = run("export", str(place / "sharded"), "--to", "smallgpt", "--out", str(tmp_path / "joined"))
    assert code == 0, err
    assert "the same model" in out or "equal" in out
    joined = load_file(tmp_path / "joined" / "model.safetensors")
    expected = read_weights(newest(place / "whole"))
    assert joined.keys() == expected.keys() - {"lm_head.weight"}
    assert all(torch.equal(joined[name], expected[name]) for name in joined)
    assert json.loads(run("evaluate", str(tmp_path / "joined"), "--data", str(place / "data"), "--json")[1]) == found[0]


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_a_damaged_shard_is_noticed(place: Path, tmp_path: Path, run: Run, damage: str) -> None:
    other = tmp_path / "run"
    leave("train", "--data", str(place / "data"), "--out", str(other), *TINY, "--checkpoint.sharded")
    [shard] = newest(other).glob("shard-*")
    content = bytearray(shard.read_bytes())
    match damage:
        case "flip":
            content[-1] ^= 1
            shard.write_bytes(content)
        case "cut":
            shard.write_bytes(content[:-100])
        case "lose":
            shard.unlink()
    code, _, err = run("evaluate", str(newest(other)))
    assert code == 4
    assert "shard-00001" in err
    code, out, _ = run("train", "--resume", str(other))
    assert code == 0
    assert "passed over a damaged checkpoint" in out


def test_low_rank_updates_are_not_kept_in_shards(place: Path, run: Run) -> None:
    code, _, err = run(
        "train",
        "--init",
        str(place / "whole"),
        "--data",
        str(place / "data"),
        "--training.lora-rank=2",
        "--checkpoint.sharded",
    )
    assert code == 2
    assert "checkpoint.sharded is for runs that train all of a model; leave training.lora_rank out" in err

"""`train` on windows of every kind and on several folders: what is recorded, resumed, scored and refused."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.infrastructure.texts import write_texts
from tests.interfaces.conftest import Run, leave

TINY = ["--model.n-layer=1", "--model.n-head=2", "--model.n-embd=16", "--model.block-size=32", "--model.dropout=0"]
TINY += ["--training.batch-size=4", "--training.threads=1", "--training.precision=fp32", "--training.compile=off"]
TINY += ["--evaluation.sample-every=0", "--evaluation.every=0", "--checkpoint.every=3"]
TEXTS = [f"Once Tom had {n} hats and {n * 3} kites." for n in range(120)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_texts(TEXTS, TEXTS[:9], Path("a"), name="a")
    write_texts([text.upper() for text in TEXTS[:80]], TEXTS[9:15], Path("b"), name="b")
    return tmp_path


def events(run: str, kind: str) -> list[dict[str, Any]]:
    lines = Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def weights(run: str, step: int) -> dict[str, Any]:
    tensors: dict[str, Any] = load_file(Path(run, "checkpoints", f"step-{step:08}", "model.safetensors"))
    return tensors


@pytest.mark.parametrize(
    "words",
    [
        ["--data=a", "--data.windows=documents"],
        ["--data=a", "--data.windows=packed", "--training.short-windows=0.5"],
        ["--data=a=0.7", "--data=b=0.3"],
        ["--data=a", "--data=b", "--data.windows=packed"],
    ],
)
def test_a_run_that_is_resumed_is_the_run_that_was_not(here: Path, words: list[str]) -> None:
    for out in ("whole", "parts"):
        assert leave("train", *words, f"--out={out}", "--training.max-steps=6", *TINY) == 0
    shutil.rmtree("parts/checkpoints/step-00000006")
    assert leave("train", "--resume=parts") == 0
    assert all(tensor.equal(weights("whole", 6)[name]) for name, tensor in weights("parts", 6).items())


def test_a_mixture_is_recorded_scored_and_judged(here: Path, run: Run) -> None:
    code, words, _ = run("train", "--data=a=3", "--data=b=1", "--training.max-steps=3", *TINY)
    assert code == 0
    assert "runs/a=3-b=1" not in words
    data = tomllib.loads(Path("runs/a-b/config.toml").read_text())["data"]
    assert data["mixture"] == [{"path": str(here / "a"), "weight": 3.0}, {"path": str(here / "b"), "weight": 1.0}]
    assert "path" not in data
    (start,) = events("runs/a-b", "start")
    assert start["data"] == f"{here / 'a'} + {here / 'b'}"
    assert start["baselines"] == {}
    code, found, _ = run("evaluate", "runs/a-b", "--json")
    assert code == 0
    scored = json.loads(found)
    assert scored["bytes"] == sum(len(text) for text in TEXTS[:15])
    assert scored["tokens"] == scored["bytes"] + 15
    code, found, _ = run("doctor", "runs/a-b", "--json")
    assert (code, json.loads(found)["run"]["data_at_hand"]) == (0, True)


def test_folders_without_weights_are_mixed_by_their_tokens(here: Path) -> None:
    assert leave("train", "--data=a", "--data=b", "--out=run", "--training.max-steps=1", *TINY) == 0
    mixed = tomllib.loads(Path("run/config.toml").read_text())["data"]["mixture"]
    sizes = [Path(name, "train.bin").stat().st_size for name in "ab"]
    assert [folder["weight"] for folder in mixed] == pytest.approx([size / sum(sizes) for size in sizes])


def test_what_may_change_when_a_mixture_is_resumed(here: Path, run: Run) -> None:
    assert leave("train", "--data=a=3", "--data=b=1", "--out=run", "--training.max-steps=3", *TINY) == 0
    longer = ["train", "--resume=run", "--training.max-steps=4"]
    for changes, code, said in (
        (["--data=a=1", "--data=b=1"], 2, "data.mixture"),
        (["--data=b=3", "--data=a=1"], 4, "other tokens than this run was trained on"),
        (["--data=a"], 4, "other tokens than this run was trained on"),
        (["--data.windows=packed"], 2, "data.windows anywhere -> packed"),
    ):
        ended, _, err = run(*longer, *changes)
        assert (ended, said in err) == (code, True), err
    Path("a").rename("moved")
    assert run(*longer)[0] == 3
    assert run(*longer, "--data=moved=3", "--data=b=1")[0] == 0


def test_folders_that_cannot_be_mixed(here: Path, run: Run) -> None:
    write_texts(TEXTS, TEXTS[:9], Path("c"), "bpe", name="c")
    code, _, err = run("train", "--data=a", "--data=c", "--out=run", *TINY)
    assert code == 3
    assert "a and c were made with different tokenizers" in err
    code, _, err = run("train", "--data=a=1", "--data=b", "--out=run", *TINY)
    assert code == 2
    assert "weights for some folders only" in err
    code, _, err = run("train", "--data=a=1", "--data=b=1e-9", "--out=run", *TINY)
    assert code == 2
    assert "less than one sample" in err
    assert not Path("run").exists()


@pytest.mark.parametrize("weight", ["0.5", "1", "0", "-2", "1e-3"])
def test_a_weight_of_a_single_folder_is_refused(run: Run, here: Path, weight: str) -> None:
    code, _, err = run("train", "--data", f"a={weight}", "--out", "refused", *TINY)
    assert code == 2
    assert f"a weight ({weight}) is a share among several folders" in err
    assert "say --data a, or" in err
    assert "prepare" not in err, "which would make a folder of that name"


def test_a_folder_may_have_a_name_like_a_weight(run: Run, here: Path) -> None:
    Path("a=0.5").symlink_to("a")
    code, _, err = run("train", "--data", "a=0.5", "--out", "named", *TINY)
    assert code == 0, err


@pytest.mark.parametrize("weight", ["0", "-1"])
def test_a_weight_among_several_must_be_above_zero(run: Run, here: Path, weight: str) -> None:
    code, _, err = run("train", "--data", f"a={weight}", "--data", "b=1", "--out", "refused", *TINY)
    assert code == 2
    assert f"data.mixture: must be greater than 0 (got '{weight}')" in err

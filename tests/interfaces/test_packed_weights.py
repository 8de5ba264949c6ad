"""Weights in fewer bits: what they cost is measured on the run's own data, and said."""

import json
import shutil
from pathlib import Path

import pytest

from tests.interfaces.conftest import Run, leave


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, with its data beside it."""
    folder = tmp_path_factory.mktemp("packed")
    stories = "\n<|endoftext|>\n".join(f"Once Tom had {n} hats and {n * n} kites." for n in range(150))
    (folder / "stories.txt").write_text(stories)
    data, out = str(folder / "data"), str(folder / "run")
    assert leave("prepare", "text", str(folder / "stories.txt"), "--tokenizer", "bytes", "--out", data) == 0
    sizes = ["--model.n-layer=1", "--model.n-head=2", "--model.n-embd=32", "--model.block-size=16"]
    settings = ["--training.batch-size=4", "--training.threads=1", "--training.compile=off", "--training.max-steps=20"]
    assert leave("train", "--data", data, "--out", out, *sizes, *settings) == 0
    return folder


def test_evaluate_scores_the_model_both_ways(run: Run, trained: Path) -> None:
    exact = json.loads(run("evaluate", str(trained / "run"), "--json")[1])
    code, out, _ = run("evaluate", str(trained / "run"), "--weights", "int8", "--json")
    rounded = json.loads(out)
    assert code == 0
    assert rounded["weights"] == "int8"
    assert rounded["float32"] == {key: exact[key] for key in ("nats_per_token", "bits_per_byte")}
    assert rounded["bits_per_byte"] != exact["bits_per_byte"], "nothing was rounded"
    assert rounded["bits_per_byte"] == pytest.approx(exact["bits_per_byte"], rel=0.01)
    _, words, _ = run("evaluate", str(trained / "run"), "--weights", "int8")
    lost = rounded["bits_per_byte"] - exact["bits_per_byte"]
    assert f"weights int8: {lost:+.5f} bits per byte beside float32's {exact['bits_per_byte']:.4f}" in words


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_generate_says_what_the_weights_cost(run: Run, trained: Path, weights: str) -> None:
    words = ["generate", str(trained / "run"), "--prompt", "Once", "--max-new-tokens=9", "--seed=1"]
    code, out, err = run(*words, f"--weights={weights}")
    assert code == 0
    assert out.startswith("Once")
    assert err.startswith(f"weights {weights}: ")
    assert " bits per byte beside float32's " in err
    assert run(*words)[2] == "", "as they are, weights need no words"


def test_without_the_data_it_says_how_to_know(run: Run, trained: Path, tmp_path: Path) -> None:
    (checkpoint,) = (trained / "run" / "checkpoints").glob("step-*20")
    alone = shutil.copytree(checkpoint, tmp_path / "alone")
    code, _, err = run("generate", str(alone), "--max-new-tokens=3", "--weights=int8")
    assert code == 0
    assert err == (
        f"weights int8: what rounding costs is unknown here; `smallgpt evaluate {alone} --weights int8 --data DIR` tells\n"
    )

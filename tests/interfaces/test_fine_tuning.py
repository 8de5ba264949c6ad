"""`train --init`: from a run or another tool's folder to a model of other text, whole, in part, or by low-rank updates."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import smallgpt
from smallgpt.infrastructure.checkpoints import load_checkpoint, read_weights
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces.cli import main
from tests.interfaces.conftest import Run, leave

SIZES = ["--model.n-layer=2", "--model.n-head=2", "--model.n-embd=32", "--model.block-size=32", "--model.dropout=0"]
QUICK = ["--training.threads=1", "--training.batch-size=4", "--training.precision=fp32", "--evaluation.sample-every=0"]
LORA = ["--training.lora-rank=4", "--optimizer.learning-rate=0.01"]


def letters(seed: int, names: list[str]) -> str:
    pick = random.Random(seed).choice
    return "\n<|endoftext|>\n".join(
        f"Dear {pick(names)}, I saw {n} {pick(['dogs', 'cats'])} today." for n in range(150)
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on letters to Ann and Bob, and letters to others, with its tokenizer."""
    place = tmp_path_factory.mktemp("fine-tuning")
    (place / "old.txt").write_text(letters(0, ["Ann", "Bob"]))
    (place / "new.txt").write_text(letters(1, ["Zoe", "Max"]))
    call("prepare", "text", place / "old.txt", "--vocab-size", "300", "--out", place / "old")
    tokenizer = place / "old" / "tokenizer.json"
    call("prepare", "text", place / "new.txt", "--tokenizer", tokenizer, "--out", place / "new")
    call("train", "--data", place / "old", "--out", place / "base", "--training.max-steps=80", *SIZES, *QUICK)
    return place


def call(*words: object) -> None:
    assert leave(*map(str, words)) == 0


def tune(place: Path, out: Path, *words: object, init: object = None, steps: int = 12, data: str = "new") -> list[Any]:
    """Fine-tune, and give the run's events."""
    start = ["--init", init or place / "base"]
    own = [flag for flag in QUICK if not any(str(word).startswith(flag.partition("=")[0]) for word in words)]
    call("train", *start, "--data", place / data, "--out", out, f"--training.max-steps={steps}", *own, *words)
    return RunFolder(out).metrics()


def validations(events: list[Any]) -> list[float]:
    return [event["nats_per_token"] for event in events if event["event"] == "validation"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_weights(RunFolder(run).checkpoints()[-1])


def test_it_starts_where_the_other_run_ended(place: Path, tmp_path: Path, run: Run) -> None:
    """The first validation, before any step, is the other run's model on the new data; and so is LoRA's."""
    _, out, _ = run("evaluate", str(place / "base"), "--data", str(place / "new"), "--json")
    expected = json.loads(out)["nats_per_token"]
    for name, words in {"whole": [], "lora": LORA}.items():
        found = validations(tune(place, tmp_path / name, *words))
        assert found[0] == pytest.approx(expected, rel=1e-5)
        assert found[-1] < found[0]


def test_the_loss_falls_sooner_than_from_scratch(place: Path, tmp_path: Path) -> None:
    scratch = [
        "train",
        "--data",
        place / "new",
        "--out",
        tmp_path / "scratch",
        "--training.max-steps=12",
        *SIZES,
        *QUICK,
    ]
    call(*scratch)
    for name, words in {"whole": [], "last": ["--training.freeze=embeddings,blocks.0"], "lora": LORA}.items():
        found = validations(tune(place, tmp_path / name, *words))
        assert found[-1] < validations(RunFolder(tmp_path / "scratch").metrics())[-1] - 1, name


def test_sizes_come_from_the_model_and_the_run_says_so(place: Path, tmp_path: Path) -> None:
    events = tune(place, tmp_path / "run", "--model.dropout=0.1", "--model.block-size=16", "--training.freeze=norms")
    config = RunFolder(tmp_path / "run").config()
    base = RunFolder(place / "base").config()
    assert config.model == base.model.model_copy(update={"dropout": 0.1, "block_size": 16})
    assert config.training.init == str(place / "base")
    start = next(event for event in events if event["event"] == "start")
    assert start["init"] == str(place / "base")
    assert start["parameters"] - start["trained_parameters"] == 2 * 32 * 5
    assert [e["words"] for e in events if e["event"] == "note"] == ["positions: the first 16 of 32 are kept"]


@pytest.mark.parametrize("where", ["flag", "file"])
def test_a_preset_is_a_recipe_whose_sizes_step_aside(place: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "init.toml").write_text(f'[training]\ninit = "{place / "base"}"\n')
    source = ["--init", place / "base"] if where == "flag" else ["--config", tmp_path / "init.toml"]
    short = ["--training.max-steps=1", "--schedule.warmup=0"]
    call("train", "demo", *source, "--data", place / "new", "--out", tmp_path / "run", *short, *QUICK)
    config = RunFolder(tmp_path / "run").config()
    assert (config.model.n_layer, config.optimizer.name) == (2, "muon")


@pytest.mark.parametrize("words", [["--training.freeze=embeddings,blocks.0"], LORA], ids=["frozen", "lora"])
def test_what_is_not_trained_stays_as_it_was_to_the_bit(place: Path, tmp_path: Path, words: list[str]) -> None:
    tune(place, tmp_path / "run", *words)
    state = load_checkpoint(RunFolder(tmp_path / "run").checkpoints()[-1])
    before, trained = weights(place / "base"), {name.rpartition("/")[0] for name in state.optimizer}
    same = {name for name in before if torch.equal(before[name], state.weights[name])}
    assert same == before.keys() - trained
    assert len(trained) == (16 if words == LORA else 14)


def test_every_command_sees_the_updates(
    place: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    last = validations(tune(place, tmp_path / "run", *LORA))[-1]
    capsys.readouterr()
    _, out, _ = run("evaluate", str(tmp_path / "run"), "--json")
    assert json.loads(out)["nats_per_token"] == pytest.approx(last, rel=1e-5)
    call("export", tmp_path / "run", "--to", "seed", "--out", tmp_path / "Model")
    idx = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(smallgpt.load(tmp_path / "Model")(idx), smallgpt.load(tmp_path / "run")(idx))
    assert validations(tune(place, tmp_path / "again", init=tmp_path / "run"))[0] == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize("words", [["--training.freeze=norms,blocks.1"], LORA], ids=["frozen", "lora"])
def test_resumed_it_is_the_run_that_was_never_stopped_and_needs_its_start_no_more(
    place: Path, tmp_path: Path, words: list[str]
) -> None:
    shutil.copytree(place / "base", tmp_path / "base")
    constant = [*words, "--schedule.name=constant", "--checkpoint.every=4"]
    tune(place, tmp_path / "whole", *constant, init=tmp_path / "base")
    tune(place, tmp_path / "cut", *constant, init=tmp_path / "base", steps=8)
    for path in (tmp_path / "cut" / "checkpoints").glob("step-*8"):  # as if it had been cut off after step 4
        shutil.rmtree(path)
    shutil.rmtree(tmp_path / "base")
    call("train", "--resume", tmp_path / "cut", "--training.max-steps=12")
    whole, cut = (load_checkpoint(RunFolder(tmp_path / name).checkpoints()[-1]) for name in ("whole", "cut"))
    assert whole.step == cut.step == 12
    for one, other in ((whole.weights, cut.weights), (whole.optimizer, cut.optimizer)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_tools_folder_is_a_start_too(place: Path, tmp_path: Path) -> None:
    call("export", place / "base", "--to", "seed", "--out", tmp_path / "Model")
    theirs = validations(tune(place, tmp_path / "run", init=tmp_path / "Model", steps=1))
    assert theirs == validations(tune(place, tmp_path / "same", steps=1))


def test_data_of_another_tokenizer_is_refused_with_the_command_that_makes_it_right(
    place: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("prepare", "text", place / "new.txt", "--tokenizer", "bytes", "--out", tmp_path / "bytes")
    words = ["train", "--init", str(place / "base"), "--data", str(tmp_path / "bytes"), "--out", str(tmp_path / "run")]
    code, _, err = run(*words)
    assert code == 3
    assert "was made with another tokenizer" in err
    command = err.split("`")[1].replace("PATH...", str(place / "new.txt")).replace("FOLDER", str(tmp_path / "right"))
    call(*command.split()[1:])
    tune(place, tmp_path / "run", data=str(tmp_path / "right"), steps=1)


def test_without_a_tokenizer_only_the_number_of_ids_counts(place: Path, tmp_path: Path, run: Run) -> None:
    call("export", place / "base", "--to", "seed", "--out", tmp_path / "Model")
    (tmp_path / "Model" / "tokenizer.pkl").unlink()
    call("prepare", "text", place / "new.txt", "--vocab-size", "600", "--out", tmp_path / "larger")
    words = ["train", "--init", str(tmp_path / "Model"), "--data", str(tmp_path / "larger"), "--out", "unused"]
    code, _, err = run(*words)
    assert code == 3
    assert "has 600 token ids" in err or "token ids, " in err
    tune(place, tmp_path / "run", init=tmp_path / "Model", steps=1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.n-layer=3"], "model.n_layer 3, not 2"),
        (
            ["--model.activation=gelu_tanh", "--model.vocab-size=512"],
            "gelu_tanh, not gelu; model.vocab_size 512, not 384",
        ),
        (["--model.block-size=64"], "model.block_size (64) is larger than that of"),
        (["--training.freeze=blocks.2"], "the model has the blocks 0 to 1"),
        (["--training.freeze=embeddings,norms,blocks"], "nothing is left to train"),
        (["--training.freeze=head"], "'head' is no part of a model; name embeddings"),
        (["--training.lora-alpha=8"], "do nothing without lora_rank"),
        (["--training.lora-rank=2", "--optimizer.name=muon"], "needs optimizer.name adamw"),
        (["--training.lora-rank=2", "--training.lora-targets=query"], "'query' is no matrix of a block"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path, run: Run, flags: list[str], said: str
) -> None:
    words = ["train", "--init", place / "base", "--data", place / "new", "--out", tmp_path / "run", *QUICK, *flags]
    code, _, err = run(*map(str, words))
    assert code == 2
    assert said in err
    assert not (tmp_path / "run").exists()


def test_a_start_that_is_not_there_is_a_checkpoint_error(place: Path, tmp_path: Path, run: Run) -> None:
    code, _, err = run("train", "--init", str(tmp_path / "nothing"), "--data", str(place / "new"))
    assert code == 4
    assert "nothing is not there" in err


@pytest.mark.parametrize("backend", ["reference", "torch", pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("words", [["--training.freeze=embeddings"], LORA], ids=["frozen", "lora"])
def test_every_backend_and_recomputed_blocks_give_the_same_losses(
    place: Path, tmp_path: Path, backend: str, words: list[str]
) -> None:
    more = [f"--kernels.backend={backend}", "--model.block-size=8", "--training.activation-checkpointing"]
    events = tune(place, tmp_path / "run", *words, *more, steps=3, init=place / "base")
    plain = tune(place, tmp_path / "plain", *words, "--kernels.backend=torch", "--model.block-size=8", steps=3)
    losses, expected = ([e["loss"] for e in each if e["event"] == "train"] for each in (events, plain))
    assert losses == pytest.approx(expected, rel=2e-5)


def test_bf16_on_a_cpu(place: Path, tmp_path: Path) -> None:
    found = validations(tune(place, tmp_path / "run", *LORA, "--training.precision=bf16"))
    assert found[-1] < found[0] - 0.1


def test_help_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--init MODEL" in capsys.readouterr().out

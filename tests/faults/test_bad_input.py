"""Wrong settings, wrong runs, wrong machines: each gives one clear line, its exit code, and leaves everything as it was."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smallgpt.infrastructure.run_folder import RunFolder

Refused = Callable[..., None]
Run = Callable[..., Any]

TRAIN = ["train", "--data", "data", "--out", "runs/new", "--training.max-steps=3"]
RESUME = ["train", "--resume", "runs/small"]
GENERATE = ["generate", "runs/small", "--max-new-tokens=3"]


# --- words and settings


@pytest.mark.parametrize(
    ("command", "words"),
    [
        # names
        (["trian"], ["unknown command 'trian'", "did you mean train"]),
        (["train", "demmo"], ["no preset 'demmo'", "did you mean demo?", "tinystories-cpu"]),
        (["train", "my.toml"], ["no preset 'my.toml'", "--config my.toml"]),
        ([*TRAIN, "--model.n-heads=4"], ["--model.n-heads", "Did you mean --model.n-head?"]),
        ([*TRAIN, "--model.n_heads=4"], ["--model.n_heads", "Did you mean --model.n-head?"]),
        ([*TRAIN, "--lr=1"], ["--lr", "smallgpt train --help"]),
        (["prepare", "demoo"], ["demoo", 'Did you mean "demo"?']),
        (["prepare", "text", "stories.txt", "--tokenizer=gpt3"], ["'gpt3'", "gpt2, bpe, bytes"]),
        (["prepare", "text", "stories.txt", "--tokenizer=nope.json"], ["nope.json", "no such file"]),
        # values that do not fit
        ([*TRAIN, "--model.n-embd=30", "--model.n-head=4"], ["n_embd (30)", "multiple of n_head (4)"]),
        ([*TRAIN, "--model.block-size=0"], ["model.block_size", "1", "'0'"]),
        ([*TRAIN, "--model.n-layer=-1"], ["model.n_layer", "'-1'"]),
        ([*TRAIN, "--model.dropout=1"], ["model.dropout", "less than 1", "'1'"]),
        ([*TRAIN, "--training.batch-size=0"], ["training.batch_size", "'0'"]),
        ([*TRAIN, "--training.batch-size=2", "--training.micro-batch=4"], ["micro_batch (4)", "batch_size (2)"]),
        ([*TRAIN, "--training.label-smoothing=1.5"], ["training.label_smoothing", "less than 1", "'1.5'"]),
        ([*TRAIN, "--training.label-smoothing=-0.1"], ["training.label_smoothing", "'-0.1'"]),
        ([*TRAIN, "--training.precision=fp17"], ['"fp17"', '"fp16"', '"bf16"']),
        ([*TRAIN, "--training.max-minutes=1"], ["max_steps (3)", "max_minutes (1)", "give one"]),
        ([*TRAIN, "--training.seed=1.5"], ["training.seed", "'1.5'"]),
        ([*TRAIN, "--optimizer.learning-rate=0"], ["optimizer.learning_rate", "greater than 0"]),
        ([*TRAIN, "--optimizer.learning-rate=1e-4x"], ["optimizer.learning_rate", "'1e-4x'"]),
        ([*TRAIN, "--optimizer.learning-rate=nan"], ["optimizer.learning_rate", "finite", "'nan'"]),
        ([*TRAIN, "--optimizer.beta1=1"], ["optimizer.beta1", "less than 1"]),
        ([*TRAIN, "--schedule.warmup=10"], ["schedule.warmup (10)", "training.max_steps (3)"]),
        (["prepare", "text", "stories.txt", "--validation-share=2"], ["validation_share (2)", "between 0 and 1"]),
        (["prepare", "text", "stories.txt", "--vocab-size=100"], ["vocab_size (100)", "257"]),
        (
            ["prepare", "text", "stories.txt", "--tokenizer=bytes", "--vocab-size=4096"],
            ["--vocab-size 4096", "not for bytes"],
        ),
        (["prepare", "tinystories", "--vocab-size=auto"], ["--vocab-size auto", "not for gpt2", "--tokenizer bpe"]),
        (["prepare", "text", "stories.txt", "--workers=0"], ["--workers is 0", "1 or more"]),
        (["prepare", "demo", "--workers=-2"], ["--workers is -2", "1 or more"]),
        (
            ["evaluate", "run", "--text", "stories.txt", "--split", "train"],
            ["--split train", "--text", "leave one out"],
        ),
        (["prepare", "text", "stories.txt", "--encoding=utf-9"], ["'utf-9'", "latin-1"]),
        # sampling
        ([*GENERATE, "--temperature=-1"], ["temperature is -1.0", "0 or more"]),
        ([*GENERATE, "--temperature=nan"], ["temperature is nan"]),
        ([*GENERATE, "--top-p=0"], ["top-p is 0.0", "above 0 and at most 1"]),
        ([*GENERATE, "--top-p=2"], ["top-p is 2.0"]),
        ([*GENERATE, "--top-k=0"], ["top-k is 0", "1 or more"]),
        ([*GENERATE, "--min-p=2"], ["min-p is 2.0"]),
        ([*GENERATE, "--repetition-penalty=0"], ["repetition-penalty is 0.0"]),
        ([*GENERATE, "--seed=-1"], ["seed is -1"]),
        # a run that goes on
        ([*RESUME, "--model.n-embd=64"], ["model.n_embd 16 -> 64", "--out"]),
        ([*RESUME, "--training.batch-size=8"], ["training.batch_size 4 -> 8"]),
        ([*RESUME, "--optimizer.learning-rate=0.1", "--schedule.name=linear"], ["learning_rate", "schedule.name"]),
        ([*RESUME, "--training.max-steps=5"], ["training.max_steps (5)", "6 steps", "longer"]),
        ([*RESUME, "--out", "runs/new"], ["--out runs/new"]),
        (["train", "demo", "--resume", "runs/small"], ["preset 'demo'"]),
        # folders
        (["train", "--data", "data", "--out", "stories.txt"], ["stories.txt is there", "no checkpoint"]),
        (["train", "--data", "data", "--out", "runs/small"], ["smallgpt train --resume runs/small", "--out"]),
        (["evaluate", "runs/small", "--text", "stories.txt", "--data", "data"], ["--data or --text"]),
    ],
    ids=lambda part: " ".join(part)[:90].replace("\n", " ") if isinstance(part, list) else None,
)
def test_a_wrong_word_or_value_is_named_with_its_remedy(
    here: Path, refused: Refused, command: list[str], words: list[str]
) -> None:
    refused(command, 2, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[model]\nn_heads = 4\n", ["unknown setting model.n_heads in my.toml", "did you mean model.n_head?"]),
        (b"[modle]\nn_head = 4\n", ["modle", "my.toml", "did you mean model?"]),
        (b"[training]\nlearning_rate = 1e-3\n", ["training.learning_rate", "did you mean optimizer.learning_rate?"]),
        (b"[model]\nn_head = 'four'\n", ["model.n_head", "'four'", "my.toml"]),
        (b"[model]\nbias = 'off'\n[optimizer]\nbeta1 = '0.9x'\n", ["optimizer.beta1", "'0.9x'", "my.toml"]),
        (b"model = 3\n", ["my.toml", "[model]"]),
        (b"[model\n", ["my.toml", "broken TOML", "line 1"]),
        (b"# caf\xe9\n", ["my.toml", "UTF-8"]),
        (b"[training]\nmax_steps = 3\nmax_minutes = 1\n", ["max_steps (3)", "max_minutes (1)"]),
        (b"[model]\nn_embd = 30\nn_head = 4\n", ["n_embd (30)"]),
    ],
)
def test_a_wrong_configuration_file_is_named(here: Path, refused: Refused, content: bytes, words: list[str]) -> None:
    Path("my.toml").write_bytes(content)
    refused(["train", "--config", "my.toml", "--data", "data", "--out", "runs/new"], 2, *words)


def test_a_configuration_file_that_is_missing(here: Path, refused: Refused) -> None:
    refused(["train", "--config", "no.toml", "--data", "data"], 2, "no.toml", "No such file")


# --- runs and checkpoints


def newest(run: str = "runs/small") -> Path:
    return RunFolder(Path(run)).checkpoints()[-1]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("command", ["evaluate", "generate", "report", "doctor"])
def test_a_run_that_is_not_there(here: Path, refused: Refused, command: str) -> None:
    refused([command, "runs/nope"], 4, "runs/nope")
    refused([command, "data"], 4, "data")


def test_a_folder_without_a_checkpoint_cannot_go_on(here: Path, refused: Refused) -> None:
    refused(["train", "--resume", "data"], 4, "data: not a run folder", "config.toml")
    for path in newest().parent.glob("step-*/manifest.json"):
        path.unlink()
    refused(RESUME, 4, "no usable checkpoint", "manifest.json is missing", "Start anew")


def test_a_run_in_use_is_left_alone(here: Path, refused: Refused) -> None:
    with RunFolder(Path("runs/small")).lock():
        refused([*RESUME, "--training.max-steps=9"], 4, "runs/small is in use by process", "--out")


@pytest.mark.parametrize("harm", ["a bit", "half", "a file", "the manifest"])
def test_a_damaged_checkpoint_is_passed_over_loudly(here: Path, run: Run, harm: str) -> None:
    first, last = RunFolder(Path("runs/small")).checkpoints()
    weights = last / "model.safetensors"
    match harm:
        case "a bit":
            flip_a_bit(weights)
        case "half":
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        case "a file":
            (last / "optimizer.safetensors").unlink()
        case "the manifest":
            (last / "manifest.json").write_text("{")
    ended = run(*RESUME)
    assert (ended.code, ended.err) == (0, "")
    assert f"passed over a damaged checkpoint: {last}" in ended.out
    assert f"resumed  from step {int(first.name[5:])}" in ended.out
    assert run("evaluate", "runs/small").code == 0


def test_a_damaged_model_is_not_used(here: Path, refused: Refused) -> None:
    for path in newest().parent.glob("step-*"):
        flip_a_bit(path / "model.safetensors")
    for command in (["evaluate", "runs/small"], GENERATE, ["generate", str(newest())]):
        refused(command, 4, "model.safetensors is damaged", "Name another checkpoint")


def test_a_checkpoint_of_a_later_version_is_not_guessed_at(here: Path, refused: Refused) -> None:
    manifest = newest() / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))
    refused(["generate", str(newest())], 4, "format version 99", "this smallgpt reads 1")


def test_weights_that_are_not_finite_give_no_text(here: Path, run: Run) -> None:
    folder = Path("plain")
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes((newest() / name).read_bytes())
    content = bytearray((folder / "model.safetensors").read_bytes())
    at = 8 + struct.unpack("<Q", content[:8])[0]
    content[at:] = struct.pack("<f", float("nan")) * ((len(content) - at) // 4)
    (folder / "model.safetensors").write_bytes(content)
    ended = run("generate", "plain", "--prompt", "Tom")
    assert ended.code == 5
    assert (
        ended.err
        == "smallgpt: the model's logits are not finite; its weights are damaged or its precision overflowed\n"
    )


def test_a_model_of_another_tokenizer_scores_no_foreign_tokens(here: Path, run: Run, refused: Refused) -> None:
    assert run("prepare", "text", "stories.txt", "--vocab-size=300", "--out", "other").code == 0
    refused(["evaluate", "runs/small", "--data", "other"], 4, "another tokenizer", "other", "--text")
    assert run("evaluate", "runs/small", "--text", "stories.txt").code == 0
    refused([*RESUME, "--training.max-steps=9", "--data", "other"], 4, "other tokens", "--out")


def test_a_run_whose_data_is_gone_says_where_it_was(here: Path, refused: Refused) -> None:
    (here / "data").rename(here / "moved")
    refused([*RESUME, "--training.max-steps=9"], 3, str(here / "data"), "no such data folder")
    refused(["evaluate", "runs/small"], 3, str(here / "data"), "no such data folder")


def test_moved_data_is_accepted_when_it_is_the_same(here: Path, run: Run) -> None:
    (here / "data").rename(here / "moved")
    assert run("evaluate", "runs/small", "--data", "moved").code == 0
    assert run(*RESUME, "--training.max-steps=7", "--data", "moved").code == 0


# --- machines


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu", "mps", ""])
@pytest.mark.parametrize("command", [TRAIN, RESUME, GENERATE, ["evaluate", "runs/small"], ["kernels", "list"]])
def test_a_device_that_is_not_there(
    here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, command: list[str], device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flag = "--training.device" if command[0] == "train" else "--device"
    refused([*command, flag, device], 6, f"device '{device}'", "auto", "cpu")


@pytest.mark.parametrize("command", [[*TRAIN, "--training.precision=bf16"], ["kernels", "list", "--precision=bf16"]])
def test_bf16_is_not_emulated_on_a_processor_without_it(
    here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    refused(command, 6, "bf16 would only be emulated", "neither AMX nor AVX512-BF16", "fp32 or auto")


def test_bf16_is_refused_on_a_gpu_that_only_says_it_has_it(
    here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    refused([*TRAIN, "--training.precision=bf16"], 6, "bf16", "compute capability 7.5", "fp16 or auto")


def test_a_kernel_that_cannot_be_had(here: Path, refused: Refused) -> None:
    refused([*TRAIN, "--kernels.backend=cuda"], 2, '"cuda"', '"reference"')

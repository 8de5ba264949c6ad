"""`smallgpt plan`: the arithmetic of application.scale_plan for a preset, a file or flags, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from smallgpt.application.scale_plan import Machine, row
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.tokenizers import GPT2_IDS, byte_tokenizer
from smallgpt.interfaces.cli.plan import amount
from smallgpt.interfaces.cli.planned_vocabulary import IDS
from tests.interfaces.conftest import Run


def test_the_plans_are_those_of_the_arithmetic(run: Run) -> None:
    flags = ("--gpus", "1", "4", "--gpu-memory", "16", "--flops", "65", "--bandwidth", "8", "--mfu", "0.3")
    code, out, err = run("plan", "gpt2-124m", *flags, "--training.reduce=bf16", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["model"]["parameters"] == 124_475_904
    assert found["machine"] == {"memory": 16e9, "flops": 65e12, "bandwidth": 8e9, "mfu": 0.3}
    assert [(plan["gpus"], plan["parallel"]) for plan in found["plans"]] == [(1, "ddp"), (4, "ddp"), (4, "fsdp2")]
    model = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "dropout": 0.0}
    training = {"batch_size": 512, "micro_batch": 16, "reduce": "bf16"}
    config = RunConfig.model_validate({"model": model, "training": training})
    expected = row(config, Machine(4, 16e9, 65e12, 8e9, 0.3), "fsdp2")
    last = found["plans"][-1]
    assert (last["tokens_per_day"], last["verdict"]) == (expected.tokens_per_day, expected.verdict)
    assert last["sent_bytes"] == round(expected.sent)
    assert [each["gpus"] for each in found["largest"]] == [1, 4]


def test_people_get_a_table(run: Run) -> None:
    code, out, err = run("plan", "gpt2-124m", "--gpus", "8")
    assert (code, err) == (0, "")
    assert "124 M parameters, 32% of them outside the blocks" in out
    assert "40% are assumed" in out
    assert "largest  on 8, one sequence each in a step, blocks recomputed: ddp 3.78 B" in out
    assert all(word in out for word in ("tokens/day", "ddp", "fsdp2", "fits"))


def test_muon_is_planned_as_it_trains(run: Run) -> None:
    code, out, err = run("plan", "gpt2-124m", "--optimizer.name=muon")
    assert (code, err) == (0, "")
    assert (
        "state    fp32 weights, gradients and Muon's momentum of the blocks' matrices, AdamW's moments of the rest"
        in out
    )
    assert "fsdp2" not in out
    found = json.loads(run("plan", "tinystories", "--json")[1])
    assert [(plan["gpus"], plan["parallel"]) for plan in found["plans"]] == [(1, "ddp"), (8, "ddp")]
    assert [{*each} for each in found["largest"]] == [{"gpus", "ddp"}] * 2


def test_a_file_and_flags_are_merged_as_for_train(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[model]\nn_layer = 2\n")
    found = json.loads(run("plan", "seed", "--config", str(tmp_path / "my.toml"), "--json")[1])
    flags = json.loads(run("plan", "seed", "--model.n-layer=2", "--json")[1])
    assert found == flags
    assert found["model"]["parameters"] < 16_000_000


def _model(run: Run, *words: str) -> dict[str, object]:
    code, out, err = run("plan", *words, "--json")
    assert (code, err) == (0, "")
    found: dict[str, object] = json.loads(out)["model"]
    return found


def test_a_presets_model_has_the_vocabulary_of_its_tokenizer(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    demo = _model(run, "demo")
    settings = GPTConfig(block_size=128, n_layer=3, n_head=4, n_embd=256, vocab_size=2048)
    assert demo["parameters"] == GPT(settings).n_parameters(positions=True), "2.93 M, as `smallgpt train demo` has"
    assert demo["vocab_size_from"] == "2,048 ids of data.tokenizer bpe, padded"
    assert _model(run, "demo", "--data.vocab-size=4000")["vocab_size"] == 4096
    assert _model(run, "demo", "--model.vocab-size=4000")["vocab_size"] == 4000
    assert "\nassumed " not in run("plan", "demo")[1]


def test_data_that_is_here_decides_the_vocabulary(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "story.txt"
    text.write_text("".join(f"A cat saw {n} fish.\n<|endoftext|>\n" for n in range(200)), encoding="utf-8")
    for out in ("data/demo", "data/mine"):
        assert run("prepare", "text", str(text), "--tokenizer", "bytes", "--out", out)[0] == 0
    for words in (("demo",), ("--data.path=data/mine",), ("--data.mixture=data/mine=1,data/demo=3",)):
        assert _model(run, *words)["vocab_size"] == 384
    assert _model(run, "demo")["vocab_size_from"] == "257 ids of data/demo, padded"


@pytest.mark.parametrize("words", [(), ("--data.path=elsewhere",), ("--data.path=s3://bucket/stories",)])
def test_a_vocabulary_that_nothing_tells_is_said_to_be_assumed(run: Run, words: tuple[str, ...]) -> None:
    model = _model(run, *words)
    assert (model["vocab_size"], model["vocab_size_from"]) == (50304, "assumed")
    said = [line for line in run("plan", *words)[1].splitlines() if line.startswith("assumed")]
    assert len(said) == 1
    assert "vocabulary of 50,304" in said[0]
    assert "--model.vocab-size" in said[0]


def test_the_ids_of_fixed_tokenizers_are_theirs() -> None:
    assert {"gpt2": GPT2_IDS, "bytes": byte_tokenizer().vocab_size} == IDS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "no preset 'nothing'"),
        (("--gpus", "0"), "0 is less than 1"),
        (("--mfu", "1.5"), "1.5"),
        (("--gpu-memory", "0"), "0"),
        (("--training.freeze=embeddings",), "a plan is for training everything"),
    ],
)
def test_wrong_words_are_refused(run: Run, words: tuple[str, ...], said: str) -> None:
    code, out, err = run("plan", *words)
    assert (code, out) == (2, "")
    assert said in err


def test_it_loads_no_torch() -> None:
    code = """
import sys
from smallgpt.interfaces.cli import main
try:
    main(["plan", "seed", "--json"])
finally:
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_amounts_have_three_digits() -> None:
    assert [amount(n) for n in (0.5, 12, 1234, 124.4e6, 2.5e9, 14.3e12)] == [
        "0.5",
        "12",
        "1.23 k",
        "124 M",
        "2.5 B",
        "14.3 T",
    ]

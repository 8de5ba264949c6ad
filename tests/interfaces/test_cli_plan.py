"""`smallgpt plan`: the arithmetic of application.scale_plan for a preset, a file or flags, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from smallgpt.application.scale_plan import Machine, row
from smallgpt.domain.config import RunConfig
from smallgpt.interfaces.cli.plan import amount
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

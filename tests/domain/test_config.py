"""Settings check themselves and each other, and say which one is wrong."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from smallgpt.domain.config import DataConfig, GPTConfig, OptimizerConfig, RunConfig, steps_of


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *[
            ("model", key, value)
            for key in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
            for value in (0, -1)
        ],
        *[("model", "dropout", value) for value in (-0.1, 1.0, float("nan"))],
        ("data", "tokenizer", "words"),
        ("data", "vocab_size", 256),  # the bytes and end-of-text alone are 257
        *[("optimizer", "learning_rate", value) for value in (0.0, -1.0, float("nan"), float("inf"), "1e-4x")],
        ("optimizer", "beta2", 1.0),
        ("optimizer", "weight_decay", -0.1),
        ("optimizer", "name", "sgd"),
        *[("schedule", "floor", value) for value in (-0.1, 1.1)],
        ("schedule", "restart", 0.0),
        ("schedule", "warmup", -1.0),
        *[("training", "max_steps", value) for value in (0, 1.5)],
        ("training", "max_minutes", 0.0),
        ("training", "batch_size", 0),
        ("training", "label_smoothing", 1.0),
        ("training", "clip_norm", -1.0),
        ("training", "precision", "fp8"),
        ("training", "seed", -1),
        ("evaluation", "every", float("inf")),
        ("checkpoint", "keep", 0),
        ("kernels", "backend", "cuda"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(section: str, key: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate({section: {key: value}})
    assert {error["loc"] for error in caught.value.errors()} == {(section, key)}


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="n_heads"):
        RunConfig.model_validate({"model": {"n_heads": 4}})
    with pytest.raises(ValidationError, match="modle"):
        RunConfig.model_validate({"modle": {}})


def test_heads_divide_the_width() -> None:
    assert GPTConfig(n_embd=48, n_head=3).head_size == 16
    with pytest.raises(ValidationError, match=r"n_embd \(50\) must be a multiple of n_head \(4\)"):
        GPTConfig(n_embd=50, n_head=4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"training": {"max_steps": 10, "max_minutes": 1}}, r"max_steps \(10\) and max_minutes \(1\) exclude"),
        ({"training": {"batch_size": 4, "micro_batch": 8}}, r"micro_batch \(8\) is larger than batch_size \(4\)"),
        (
            {"training": {"max_steps": 100}, "schedule": {"warmup": 100}},
            r"warmup \(100\) must be shorter than .* \(100\)",
        ),
        ({"schedule": {"warmup": 2500}}, r"warmup \(2500\) must be shorter than .* \(2000\)"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings: dict[str, dict[str, int]], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RunConfig.model_validate(settings)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_default_warmup_fits_runs_of_any_length(steps: int) -> None:
    RunConfig.model_validate({"training": {"max_steps": steps}})


def test_the_warmup_is_not_judged_before_a_timed_runs_length_is_known() -> None:
    RunConfig.model_validate({"training": {"max_minutes": 3}, "schedule": {"warmup": 2500}})


def test_nothing_can_be_changed_after_the_check() -> None:
    config = OptimizerConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.beta1 = 0.5


def test_the_seeds_recipe_is_expressible() -> None:
    config = RunConfig.model_validate(
        {
            "optimizer": {"learning_rate": 1e-4, "beta2": 0.95, "weight_decay": 0.1},
            "schedule": {"name": "warm-restarts", "floor": 0.1, "warmup": 0, "restart": 1000},
            "training": {"batch_size": 1024, "micro_batch": 32, "label_smoothing": 0.1, "clip_norm": 0.5},
        }
    )
    assert config.model == GPTConfig()


@pytest.mark.parametrize(
    ("amount", "total", "steps"),
    [
        (0, 500, 0),
        (0.1, 500, 50),
        (0.1, 3, 1),  # a share is never rounded away
        (1, 500, 1),  # 1 is a step, not the whole run
        (0.999, 500, 500),
        (400, 500, 400),
        (700, 500, 700),  # more than the run: never due
    ],
)
def test_amounts_are_steps_or_shares(amount: float, total: int, steps: int) -> None:
    assert steps_of(amount, total) == steps


def test_a_mixture_is_written_as_words_or_tables() -> None:
    words = DataConfig.model_validate({"mixture": "data/a=0.7,data/b=0.3"})
    assert [(str(folder.path), folder.weight) for folder in words.mixture] == [("data/a", 0.7), ("data/b", 0.3)]
    assert words == DataConfig.model_validate({"mixture": ["data/a=0.7", {"path": "data/b", "weight": 0.3}]})
    assert words == DataConfig.model_validate(words.model_dump(mode="json"))
    assert [folder.weight for folder in DataConfig.model_validate({"mixture": "data/a,data/b"}).mixture] == [None, None]
    assert words.folders == (Path("data/a"), Path("data/b"))
    assert DataConfig(path=Path("x")).folders == (Path("x"),)
    assert DataConfig().folders == ()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"path": "a", "mixture": "b,c"}, r"path \(a\) and mixture exclude each other"),
        ({"mixture": "a=1,b"}, "weights for some folders only"),
        ({"mixture": "a,a"}, "names a folder twice"),
        ({"mixture": "a=0,b=1"}, "greater than 0"),
        ({"mixture": "a=x,b=1"}, "valid number"),
    ],
)
def test_an_unclear_mixture_is_refused(data: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DataConfig.model_validate(data)


def test_muon_trains_whole_matrices() -> None:
    for training in ({"lora_rank": 4}, {"parallel": "fsdp2"}):
        with pytest.raises(ValueError, match="muon is for whole matrices"):
            RunConfig.model_validate({"optimizer": {"name": "muon"}, "training": training})

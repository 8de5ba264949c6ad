"""A loaded model as a program uses it: what it writes and scores is what the commands write and score."""

import copy
import json
from collections.abc import Callable, Iterator
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import smallgpt
from smallgpt import GPT, GPTConfig, LanguageModel, SmallGPTError
from smallgpt.domain.errors import CheckpointError, ConfigError, DataError, HardwareError
from smallgpt.interfaces.library import TextSettings
from tests.interfaces.conftest import Run
from tests.interfaces.written_model import BLOCK_SIZE, END, write_model

Method = Callable[..., object]
SETTINGS: list[tuple[TextSettings, list[str]]] = [
    ({"temperature": 0.0}, ["--temperature=0"]),
    ({"top_k": 3, "repetition_penalty": 1.3}, ["--top-k=3", "--repetition-penalty=1.3"]),
    ({"top_p": 0.9, "min_p": 0.02}, ["--top-p=0.9", "--min-p=0.02"]),
    ({"stop": "e", "min_new_tokens": 4}, ["--stop=e", "--min-new-tokens=4"]),
    ({"stop": ["é", ".."]}, ["--stop", "é", ".."]),
    ({}, []),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder: Path) -> LanguageModel:
    return smallgpt.load(folder)


def without_tokenizer(folder: Path) -> LanguageModel:
    config = GPTConfig(block_size=8, vocab_size=61, n_layer=1, n_head=1, n_embd=8)
    folder.mkdir()
    (folder / "config.json").write_text(config.model_dump_json())
    save_file({name: p.detach() for name, p in GPT(config).named_parameters()}, folder / "model.safetensors")
    return smallgpt.load(folder)


def test_a_loaded_model_is_a_gpt(model: LanguageModel) -> None:
    assert isinstance(model, GPT)
    assert not model.training
    assert model.lm_head.weight is model.transformer.wte.weight
    idx = torch.tensor([[97, 98]])
    assert model(idx).shape == (1, 2, 384)
    assert model(idx, idx).shape == ()
    plain = GPT(model.config)
    plain.load_state_dict(model.state_dict())
    torch.manual_seed(3)
    expected = plain.eval().generate(idx, 5, 0.7, top_k=9, n_tokens=model.tokenizer.vocab_size)
    torch.manual_seed(3)
    torch.testing.assert_close(model.generate(idx=idx, max_new_tokens=5, temperature=0.7, top_k=9), expected)


def test_padding_of_the_vocabulary_is_never_chosen(model: LanguageModel) -> None:
    idx = torch.tensor([[97, 98]] * 8)
    torch.manual_seed(3)
    ids = model.generate(idx, 40, 100.0)  # so hot that all ids are alike
    assert ids.max() <= END
    assert model.generate(idx, 40, 100.0, n_tokens=384).max() > END
    for row in ids:
        model.decode(row)


@pytest.mark.parametrize(("settings", "flags"), SETTINGS)
def test_text_is_what_the_command_writes(
    run: Run, model: LanguageModel, settings: TextSettings, flags: list[str]
) -> None:
    words = [
        "generate",
        str(model.path),
        "--prompt=abc",
        "--seed=5",
        "--num-samples=3",
        "--json",
    ]
    expected = [each["text"] for each in json.loads(run(*words, *flags)[1])]
    many = model.generate("abc", num_samples=3, seed=5, **settings)
    assert many == expected
    assert model.generate("abc", seed=6, **settings) == expected[1]


def test_the_defaults_are_the_commands(run: Run, model: LanguageModel) -> None:
    printed = run("generate", str(model.path), "--seed=2")[1]
    assert model.generate("", seed=2) + "\n" == printed


def test_a_stream_gives_what_generate_adds(model: LanguageModel) -> None:
    pieces = list(model.stream_text("abé", seed=4, max_new_tokens=60))
    assert len(pieces) > 5
    assert "abé" + "".join(pieces) == model.generate("abé", seed=4, max_new_tokens=60)
    half = model.stream_text("abc", seed=4)
    next(half)
    del half  # nobody reads on
    assert not model.training


def test_without_a_seed_torch_s_own_decides(model: LanguageModel) -> None:
    torch.manual_seed(1)
    first, second = model.generate("abc"), model.generate("abc")
    assert first != second
    torch.manual_seed(1)
    assert model.generate("abc") == first


@pytest.mark.parametrize("text", ["abc. ", "déjà vu", "abcdef" * 20])
def test_a_score_is_the_evaluate_commands(run: Run, model: LanguageModel, tmp_path: Path, text: str) -> None:
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    expected = json.loads(run("evaluate", str(model.path), "--text", str(tmp_path / "text.txt"), "--json")[1])
    score = model.score(text)
    assert score.as_dict() | {"baselines": {}} == expected
    assert score.tokens == len(score.each) == len(text.encode()) + 1
    assert sum(token.logprob for token in score.each) == pytest.approx(-score.nats, rel=1e-6)
    assert score.each[-1].id == END


def test_each_token_s_part_is_the_models_probability(model: LanguageModel) -> None:
    score = model.score("bad")
    logits = model(torch.tensor([[END, *b"bad"]]))
    expected = logits.log_softmax(-1)[0].gather(1, torch.tensor([*b"bad", END])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([token.logprob for token in score.each]), expected)
    assert [token.text for token in score.each] == ["b", "a", "d", "<|endoftext|>"]
    assert score.perplexity == pytest.approx(exp(-expected.mean().item()))


def test_ids_and_text_are_two_sides(model: LanguageModel) -> None:
    assert model.encode("aé").tolist() == [[97, 0xC3, 0xA9]]
    assert model.decode(model.encode("aé")) == model.decode([97, 0xC3, 0xA9]) == "aé"
    assert model.encode("").tolist() == [[END]]
    assert model.tokenizer.vocab_size == 257


def test_hooks_take_text(model: LanguageModel) -> None:
    logits, cache = model.run_with_cache("abc", "blocks.1.attn.hook_pattern")
    torch.testing.assert_close(logits, model(model.encode("abc")), rtol=0, atol=1e-4)
    assert cache["blocks.1.attn.hook_pattern"].shape == (1, 2, 3, 3)
    nothing = model.run_with_hooks("abc", [("hook_embed", lambda value, hook: value * 0)])
    assert nothing.shape == logits.shape
    assert not torch.allclose(nothing, logits)
    torch.testing.assert_close(model.run_with_hooks(model.encode("abc")), logits)


def test_it_can_be_fine_tuned_and_saved(model: LanguageModel, tmp_path: Path, run: Run) -> None:
    """The user's own loop; dropout, which training switches on, stays out of what it writes and scores."""
    model = copy.deepcopy(model)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    end = torch.tensor([[END]])
    ids = torch.cat([end, model.encode("a cat."), end], dim=1)
    before = model.score("a cat.").nats_per_token
    for _ in range(30):
        loss = model(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.training
    assert model.score("a cat.").nats_per_token < before / 2
    assert model.generate("", temperature=0) == "a cat."
    assert model.training
    model.save(tmp_path / "tuned")
    again = smallgpt.load(tmp_path / "tuned")
    assert again.score("a cat.") == model.score("a cat.")
    assert run("generate", str(tmp_path / "tuned"), "--temperature=0")[1] == "a cat.\n"
    with pytest.raises(ConfigError, match="tuned is there already"):
        model.save(tmp_path / "tuned")


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    model = without_tokenizer(tmp_path / "bare")
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 61)
    for call in (
        lambda: model.tokenizer,
        lambda: model.generate("a"),
        lambda: model.stream_text("a"),
        lambda: model.score("a"),
        lambda: model.encode("a"),
        lambda: model.decode([1]),
        lambda: model.run_with_cache("a"),
    ):
        with pytest.raises(CheckpointError, match=r"bare has no tokenizer\.json"):
            call()
    model.save(tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["config.json", "model.safetensors"]


def test_mistakes_are_errors_at_once(model: LanguageModel) -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"temperature": -1.0}, "temperature is -1"),
        ({"max_new_tokens": 0}, "max-new-tokens is 0"),
        ({"stop": ""}, "a stop text is empty"),
        ({"seed": -1}, "seed is -1"),
    )
    for settings, words in wrong:
        with pytest.raises(ConfigError, match=words):
            model.generate("a", **settings)
        with pytest.raises(SmallGPTError, match=words):
            model.stream_text("a", **settings)
    with pytest.raises(ConfigError, match="num_samples is 0"):
        model.generate("a", num_samples=0)
    with pytest.raises(DataError, match="no text to score"):
        model.score("")
    with pytest.raises(DataError, match="token id 300 is not in"):
        model.decode([300])
    with pytest.raises(ValueError, match=f"do not fit the model's context of {BLOCK_SIZE}"):
        model.run_with_cache("a" * (BLOCK_SIZE + 1))


def test_kernels_that_cannot_run_are_refused_as_python_names_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallgpt.kernels.launching.INTERPRETING", False)
    with pytest.raises(HardwareError, match=r"(?s)^attention: triton .*\nUse kernels='auto', or another device\.$"):
        smallgpt.load(folder, kernels="triton")


def test_what_is_no_text_and_no_ids_is_refused_by_what_it_is(model: LanguageModel) -> None:
    texts: list[Method] = [model.encode, model.score, model.stream_text]
    texts_or_ids: list[Method] = [model.generate, model.run_with_cache, model.run_with_hooks]
    remedy = r" is neither a text nor ids \(B, T\): give one text, or torch\.tensor\(\[ids\]\)"
    for value, words in ((["Once", "Tom"], "a value of type list"), (None, "None"), (5, "a value of type int")):
        for call in texts_or_ids:
            with pytest.raises(ConfigError, match=words + remedy):
                call(value)
        for call in texts:
            with pytest.raises(ConfigError, match=f"{words} is not a text; give a str"):
                call(value)
    for call in texts_or_ids:
        with pytest.raises(ConfigError, match=r"a tensor of shape \(3,\)" + remedy):
            call(torch.tensor([1, 2, 3]))
    with pytest.raises(DataError, match=r"ids of shape \(2, 3\) are several texts; decode them row by row"):
        model.decode(torch.full((2, 3), 97))


def test_a_setting_that_there_is_not(model: LanguageModel) -> None:
    generate: Method = model.generate
    stream: Method = model.stream_text
    for method in (generate, stream):
        for name, hint in (("topk", "did you mean top_k"), ("sed", "did you mean seed"), ("x", "there are max_new")):
            with pytest.raises(ConfigError, match=f"{name} is not a setting of a text; {hint}"):
                method("Once", **{name: 5})
    with pytest.raises(ConfigError, match="did you mean num_samples"):
        generate("Once", num_sample=5)
    with pytest.raises(ConfigError, match="num_samples is not a setting of a text; there are"):
        stream("Once", num_samples=5)


def test_a_type_checker_knows_what_comes_out(model: LanguageModel) -> None:
    """`make lint` reads these types, and that the two wrong calls are found wrong."""
    ids: torch.Tensor = model.generate(torch.tensor([[1]]), 3, 1.0, 5)
    text: str = model.generate("a", temperature=0.5, top_k=None, stop=["."])
    texts: list[str] = model.generate("a", num_samples=2, seed=1)
    pieces: Iterator[str] = model.stream_text("a", stop=".")
    bits: float | None = model.score("a").bits_per_byte
    assert [type(each) for each in (ids, text, texts, bits)] == [torch.Tensor, str, list, float]
    assert isinstance(pieces, Iterator)
    with pytest.raises(ConfigError, match="temprature"):
        model.generate("a", temprature=1.0)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        model.generate("a", 20)  # type: ignore[call-overload]

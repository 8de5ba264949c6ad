"""Files of the hobby project and of nanoGPT, as those write them, and damaged ones."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError, ConfigError, DataError
from smallgpt.infrastructure.character_tokenizer import CharacterTokenizer
from smallgpt.infrastructure.formats import nanogpt, seed
from smallgpt.infrastructure.formats.character_tables import read_characters, write_characters
from smallgpt.infrastructure.formats.opening import format_of, read_foreign
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.infrastructure.tokenizers import PATTERN, Tokenizer, byte_tokenizer
from tests.infrastructure.formats.models import SMALL, made_model

Content = dict[str, Any]
LARGE = SMALL.model_copy(update={"vocab_size": 320})
LETTERS = CharacterTokenizer("\n abcdefghijklmnopqrstuvwxyzé")


def checkpoint(model: PortableModel, prefix: str = "", **changes: Any) -> Content:
    """What nanoGPT's train.py saves."""
    names = {name: name.replace(".ln1.", ".ln_1.").replace(".ln2.", ".ln_2.") for name in model.weights}
    weights = {f"{prefix}{names[name]}": tensor for name, tensor in model.weights.items()}
    weights[f"{prefix}lm_head.weight"] = model.weights["transformer.wte.weight"]
    args = model.config.model_dump(exclude={"activation"})
    whole = {"model": weights, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]}}
    return {**whole, "model_args": args, "iter_num": 5, "best_val_loss": torch.tensor(1.5), "config": {}, **changes}


def same(found: PortableModel, model: PortableModel) -> None:
    assert found.config == model.config
    assert found.weights.keys() == model.weights.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in model.weights.items())


@pytest.fixture
def folder(tmp_path: Path, bpe: Tokenizer) -> Path:
    """The hobby project's, with a real Encoding."""
    place = tmp_path / "Model"
    place.mkdir()
    model = made_model(LARGE)
    config = model.config.model_dump(exclude={"activation"})
    (place / "config.json").write_text(json.dumps(config))
    state = {f"module.{name}": tensor for name, tensor in model.weights.items()}
    torch.save(
        {**state, "module.lm_head.weight": model.weights["transformer.wte.weight"]}, place / "small_gpt_weights.pt"
    )
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=bpe.rules.vocabulary, special_tokens=dict(bpe.specials)
    )
    (place / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    return place


def test_the_hobby_projects_folder_is_read(folder: Path, bpe: Tokenizer) -> None:
    found = read_foreign(folder)
    same(found, made_model(LARGE))
    assert found.tokenizer is not None
    assert (found.tokenizer.fingerprint, found.name, found.notes) == (bpe.fingerprint, "Model", ())


def test_without_tokenizer_pkl_there_is_none_unless_one_is_named(folder: Path) -> None:
    (folder / "tokenizer.pkl").unlink()
    found = read_foreign(folder)
    assert found.tokenizer is None
    assert "it has no tokenizer.pkl" in found.notes[0]
    named = read_foreign(folder, "bytes")
    assert named.tokenizer is not None
    assert (named.tokenizer.name, named.notes) == ("bytes", ())


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    config = {**json.loads((folder / "config.json").read_text()), "vocab_size": 61}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(made_model().weights, folder / "small_gpt_weights.pt")
    with pytest.raises(CheckpointError, match="its bpe tokenizer has 300 ids, the model 61; it is another model's"):
        read_foreign(folder)
    with pytest.raises(CheckpointError, match="its bytes tokenizer has 257 ids, the model 61"):
        read_foreign(folder, "bytes")
    assert read_foreign(folder, "none").tokenizer is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text('{"n_layers": 3}'), "n_layers Extra inputs"),
        (lambda folder: (folder / "config.json").write_text('{"n_layer": 2, "n_embd": 30}'), "must be a multiple"),
        (lambda folder: (folder / "small_gpt_weights.pt").write_bytes(b"PK"), r"small_gpt_weights\.pt cannot be read"),
        (lambda folder: (folder / "tokenizer.pkl").write_bytes(b"PK"), r"tokenizer\.pkl is not a pickled tiktoken"),
        (
            lambda folder: torch.save(made_model().weights, folder / "small_gpt_weights.pt"),
            "wte.weight has shape 61 x 32",
        ),
    ],
)
def test_a_damaged_folder_is_refused(change: Callable[[Path], Any], words: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(CheckpointError, match=words):
        read_foreign(folder)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_checkpoint_is_read(prefix: str, bias: bool, tmp_path: Path) -> None:
    model = made_model(SMALL.model_copy(update={"bias": bias}))
    torch.save(checkpoint(model, prefix), tmp_path / "ckpt.pt")
    for path in (tmp_path, tmp_path / "ckpt.pt"):
        assert format_of(path) == "nanogpt"
        found = read_foreign(path)
        same(found, model)
        assert found.tokenizer is None
        assert "the model has no tokenizer; --tokenizer names one" in found.notes[0]


def test_an_old_checkpoint_has_masks_and_does_not_say_bias(tmp_path: Path) -> None:
    model = made_model()
    content = checkpoint(model)
    del content["model_args"]["bias"], content["model_args"]["dropout"], content["optimizer"], content["config"]
    content["model"] |= {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 12, 12).tril() for n in range(2)}
    torch.save(content, tmp_path / "ckpt.pt")
    found = read_foreign(tmp_path, "none")
    same(found, model)
    assert any("gelu_tanh" in note for note in found.notes)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_with_a_note(kind: torch.dtype, tmp_path: Path) -> None:
    model = made_model()
    halves = {name: tensor.to(kind) for name, tensor in model.weights.items()}
    torch.save(checkpoint(PortableModel(model.config, halves)), tmp_path / "ckpt.pt")
    found = read_foreign(tmp_path)
    assert all(torch.equal(found.weights[name], tensor.float()) for name, tensor in halves.items())
    assert f"its {str(kind)[6:]} weights are kept as float32" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["model"], "no checkpoint of nanoGPT: it has no 'model' and 'model_args'"),
        (lambda content: [content], "no checkpoint of nanoGPT"),
        (
            lambda content: {**content, "model_args": {"n_layer": 2}},
            "do not say n_head, n_embd, block_size, vocab_size",
        ),
        (
            lambda content: {**content, "model_args": {**content["model_args"], "n_kv_head": 1}},
            "name n_kv_head; this is an",
        ),
        (
            lambda content: {**content, "model_args": {**content["model_args"], "n_head": 5}},
            "must be a multiple of n_head",
        ),
        (lambda content: {**content, "model_args": {**content["model_args"], "n_layer": 3}}, r"h\.2\.\S+ .* missing"),
        (lambda content: {**content, "model_args": {**content["model_args"], "block_size": 8}}, "has shape 12 x 32"),
        (lambda content: {**content, "model": {**content["model"], "x": torch.ones(1)}}, "x is unknown to a GPT-2"),
        (lambda content: {**content, "model": {"a": 1}}, "its 'a' is a int, not a tensor"),
    ],
)
def test_other_checkpoints_are_refused(change: Callable[[Content], Any], words: str, tmp_path: Path) -> None:
    torch.save(change(checkpoint(made_model())), tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=words):
        read_foreign(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("vocab_size", nanogpt.GPT2_SIZES)
def test_gpt2s_tokenizer_is_assumed_where_the_sizes_say_so(
    vocab_size: int, gpt2: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nanogpt, "gpt2_tokenizer", lambda: gpt2)
    config = GPTConfig(block_size=8, vocab_size=vocab_size, n_layer=1, n_head=1, n_embd=8, dropout=0.0)
    torch.save(checkpoint(made_model(config)), tmp_path / "ckpt.pt")
    found = read_foreign(tmp_path)
    assert found.tokenizer is gpt2
    assert found.notes == (f"GPT-2's tokenizer is assumed, from {vocab_size} ids; --tokenizer names another",)


def test_a_tokenizer_is_taken_from_beside_it_or_by_its_path(tmp_path: Path) -> None:
    torch.save(checkpoint(made_model(LARGE)), tmp_path / "ckpt.pt")
    elsewhere = tmp_path / "data"
    elsewhere.mkdir()
    write_characters(LETTERS, elsewhere / "meta.pkl")
    byte_tokenizer().save(elsewhere / "tokenizer.json")
    named = {str(elsewhere / "meta.pkl"): "characters", str(elsewhere / "tokenizer.json"): "bytes", "bytes": "bytes"}
    for name, kind in named.items():
        found = read_foreign(tmp_path, name).tokenizer
        assert found is not None
        assert found.name == kind
    (elsewhere / "meta.pkl").rename(tmp_path / "meta.pkl")
    assert isinstance(read_foreign(tmp_path).tokenizer, CharacterTokenizer)
    (elsewhere / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert isinstance(read_foreign(tmp_path).tokenizer, Tokenizer)
    with pytest.raises(ConfigError, match="tokenizer 'words' is unknown"):
        read_foreign(tmp_path, "words")
    with pytest.raises(ConfigError, match="an own BPE cannot be trained on"):
        read_foreign(tmp_path, "bpe")


def test_a_table_of_characters_comes_out_as_it_went_in(tmp_path: Path) -> None:
    write_characters(LETTERS, tmp_path / "meta.pkl")
    meta = pickle.loads((tmp_path / "meta.pkl").read_bytes())
    assert meta["vocab_size"] == len(meta["itos"]) == len(meta["stoi"])
    assert [meta["stoi"][character] for character in "né"] == LETTERS.encode("né")
    assert read_characters(tmp_path / "meta.pkl").characters == LETTERS.characters


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"itos": Payload(Path("proof"))}, rf"it would import '{os.name}\.system'\.\nNothing in it was run"),
        ({"stoi": {}}, "its stoi is not its itos turned round"),
        ({"itos": {0: "a", 2: "b"}}, "none has id 1"),
        ({"itos": {0: "a", 1: "bc"}}, "'bc' is not one character"),
        ({"itos": {0: "a", 1: ["b"]}}, "is not one character"),
        ({"itos": {0: "a", 1: "a"}}, "'a' is there twice"),
        ({"vocab_size": "two"}, "does not hold vocab_size, itos and stoi"),
        ({"vocab_size": 10**12}, "none has id 2"),
    ],
)
def test_other_tables_are_refused(change: Content, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    meta = {"vocab_size": 2, "itos": {0: "a", 1: "b"}, "stoi": {"a": 0, "b": 1}}
    Path("meta.pkl").write_bytes(pickle.dumps({**meta, **change}))
    with pytest.raises(DataError, match=words):
        read_characters(Path("meta.pkl"))
    assert not Path("proof").exists()


@pytest.mark.parametrize("module", [seed, nanogpt])
def test_the_approximate_gelu_is_not_exported_to_programs_that_do_not_have_it(module: Any, tmp_path: Path) -> None:
    model = made_model(SMALL.model_copy(update={"activation": "gelu_tanh"}))
    with pytest.raises(ConfigError, match=r"activation is gelu_tanh, and .* computes the exact GELU alone"):
        module.write(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_an_export_cannot_keep_is_said(bpe: Tokenizer, tmp_path: Path) -> None:
    def notes(module: Any, tokenizer: Any) -> str:
        return " / ".join(module.write(made_model(LARGE, tokenizer), tmp_path))

    assert notes(seed, bpe) == ""
    assert notes(seed, None) == "there is no tokenizer.pkl: the model has no tokenizer"
    assert notes(seed, LETTERS) == "there is no tokenizer.pkl: tiktoken has no tables of characters"
    assert "no optimizer state" in notes(nanogpt, None)
    assert "looks for meta.pkl in data/smallgpt" in notes(nanogpt, LETTERS)
    assert "its ids are those of tokenizer.json" in notes(nanogpt, bpe)

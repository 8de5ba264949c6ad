"""Conversions are proved on what was written: a reader that says otherwise refuses them, and leaves nothing behind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.infrastructure.formats import seed
from smallgpt.infrastructure.formats.opening import FORMATS
from smallgpt.infrastructure.formats.plain import Reader
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.interfaces.converting import export_model, import_model
from smallgpt.interfaces.opening import open_model, portable
from tests.infrastructure.formats.models import SMALL, made_model
from tests.infrastructure.formats.untrained import untrained


def lying(real: Reader, by: float) -> Reader:
    """A reader that finds one token likelier than it is."""

    def logits(idx: Tensor) -> Tensor:
        found = real.logits(idx).clone()
        found[..., 7] += by
        return found

    return Reader("a liar", logits)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False},
        {"n_layer": 1, "n_head": 1},
        {"vocab_size": 257, "n_head": 4, "dropout": 0.1},
        {"block_size": 1},
        {"n_embd": 30, "n_head": 3, "n_layer": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("to", ["seed", "nanogpt", "hf", "onnx"])
def test_a_round_trip_is_equal_to_the_bit(to: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = made_model(SMALL.model_copy(update=changes))
    there = export_model(model, to, tmp_path / "there")
    back = import_model(tmp_path / "there", tmp_path / "back")
    assert there.parity.passed
    assert back.parity.passed
    assert (there.exact, back.exact) == (True, True)
    assert (there.change, back.change) == (None, None)
    again = portable(open_model(tmp_path / "back"))
    assert again.config == model.config
    assert again.weights.keys() == model.weights.keys()
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in model.weights.items())


def test_the_report_is_kept_beside_the_model(tmp_path: Path) -> None:
    conversion = export_model(made_model(), "seed", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert report == conversion.as_dict()
    assert report["parity"]["passed"] is True
    assert report["format"] == "seed"
    assert conversion.reader == "the formulas, from the file's own tensors"
    import_model(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "parity.json").is_file()


def test_a_difference_refuses_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, real = made_model(), seed.reader
    (tmp_path / "in").mkdir()
    seed.write(model, tmp_path / "in")
    monkeypatch.setattr(seed, "reader", lambda path: lying(real(path), 1e-2))
    with pytest.raises(CheckpointError, match=r"out was not written: logits of a liar differ .* by up to 0\.01"):
        export_model(model, "seed", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"out was not written: logits of a liar"):
        import_model(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_difference_leaves_what_was_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, real = made_model(), seed.reader
    export_model(model, "seed", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(seed, "reader", lambda path: lying(real(path), torch.nan))
    with pytest.raises(CheckpointError, match="by up to nan"):
        export_model(model, "seed", tmp_path / "out", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("to", "options"), [("seed", {}), ("gguf", {}), ("gguf", {"dtype": "f16"}), ("gguf", {"dtype": "q8_0"})]
)
@pytest.mark.parametrize("name", ["transformer.ln_f.weight", "transformer.h.0.mlp.c_fc.weight"])
def test_a_writer_that_writes_another_model_is_found_out(
    to: str, options: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written is equal to itself by its own reader; it is the model before that it differs from."""
    module = FORMATS[to]
    real = module.write

    def shifted(model: PortableModel, folder: Path, **options: Any) -> tuple[str, ...]:
        weights = {**model.weights, name: model.weights[name] * 1.02}
        notes: tuple[str, ...] = real(replace(model, weights=weights), folder, **options)
        return notes

    export_model(untrained(activation="gelu"), to, tmp_path / "right", **options)
    monkeypatch.setattr(module, "write", shifted)
    with pytest.raises(CheckpointError, match="what was written, read back, is another model"):
        export_model(untrained(activation="gelu"), to, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["right"]


def test_what_is_there_is_replaced_only_when_told_and_when_it_is_a_conversion(tmp_path: Path) -> None:
    model, out = made_model(), tmp_path / "out"
    export_model(model, "seed", out)
    with pytest.raises(ConfigError, match="is there already; choose another --out, or add --overwrite"):
        export_model(model, "seed", out)
    export_model(model, "nanogpt", out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"ckpt.pt", "parity.json"}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="was not written by import or export, so it is not replaced"):
        export_model(model, "seed", mine, overwrite=True)
    assert (mine / "thesis.txt").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "mine"}


def test_logits_too_large_for_float32_are_compared_in_float64(tmp_path: Path) -> None:
    model = made_model(GPTConfig(block_size=16, vocab_size=61, n_layer=2, n_head=2, n_embd=32, dropout=0.0))
    model.weights["transformer.ln_f.weight"].mul_(2000)
    conversion = export_model(model, "seed", tmp_path / "large")
    assert (conversion.parity.dtype, conversion.parity.passed, conversion.exact) == ("float64", True, True)
    assert conversion.parity.largest_logit > 1000
    assert conversion.parity.max_difference < 1e-6


def test_float64_does_not_excuse_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, real = made_model(), seed.reader
    model.weights["transformer.ln_f.weight"].mul_(2000)

    def lied(path: Path) -> Reader:
        reader = real(path)
        assert reader.logits64 is not None
        return Reader("a liar", reader.logits, lying(Reader("", reader.logits64), 2e-4).logits)

    monkeypatch.setattr(seed, "reader", lied)
    with pytest.raises(CheckpointError, match="was not written"):
        export_model(model, "seed", tmp_path / "large")


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format is 'word'; choose seed"):
        export_model(made_model(), "word", tmp_path / "out")
    with pytest.raises(CheckpointError, match="is no model that smallgpt knows"):
        import_model(tmp_path, tmp_path / "out")

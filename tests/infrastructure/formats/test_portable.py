"""Tensors that do not make the model that a configuration describes are named; layouts find what they should."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.formats import plain
from smallgpt.infrastructure.formats.portable import kinds_noted, taken
from tests.infrastructure.formats.models import SMALL, made_model

Tensors = dict[str, Tensor]
LN = "transformer.h.1.ln1.weight"


@pytest.fixture
def tensors() -> Tensors:
    return dict(made_model().weights)


def with_one(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors[name])}


def llama(tensors: Tensors) -> Tensors:
    return {f"model.layers.{n}.self_attn.q_proj.weight": torch.ones(32, 32) for n in range(5)}


def bad_number(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([3]), value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: {n: t for n, t in tensors.items() if n != LN}, rf"{LN} is missing; the file is incomplete"),
        (
            lambda tensors: {n: t for n, t in tensors.items() if "ln1" not in n},
            r"ln1\.bias and 1 more are missing; the file",
        ),
        (lambda tensors: {**tensors, "extra": torch.ones(1)}, "extra is unknown to a GPT-2; this is another kind"),
        (llama, r"25 more are missing, and model\.layers\.0.* 2 more are unknown .* this is another kind of model"),
        (
            with_one(LN, lambda t: t[:-1]),
            f"{LN} has shape 31, but its configuration says 32; weights and configuration",
        ),
        (with_one("transformer.wpe.weight", lambda t: t.t()), "has shape 32 x 12, but its configuration says 12 x 32"),
        (with_one(LN, lambda t: t.sum()), "has shape of a single number"),
        (with_one(LN, lambda t: t.long()), r"holds torch\.int64, .* not plain floating-point numbers"),
        (with_one(LN, lambda t: t.to_sparse()), "not plain floating-point numbers"),
        (with_one(LN, lambda t: t.to("meta")), "not plain floating-point numbers"),
        (with_one(LN, bad_number(torch.nan)), f"{LN} holds numbers that are not finite"),
        (with_one(LN, bad_number(torch.inf)), f"{LN} holds numbers that are not finite"),
        (with_one(LN, lambda t: t.double() * 1e300), f"{LN} holds numbers that are not finite"),
        (
            with_one("transformer.wpe.weight", lambda t: torch.zeros(1).expand(12, 32)),
            "its weights share their numbers",
        ),
        (lambda tensors: {**tensors, "lm_head.weight": torch.ones(61, 32)}, "output head is a matrix of its own"),
        (lambda tensors: {**tensors, "lm_head.weight": torch.ones(60, 32)}, "output head is a matrix of its own"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[Tensors], Tensors], words: str, tensors: Tensors) -> None:
    with pytest.raises(CheckpointError, match=f"^here: .*{words}"):
        taken(change(tensors), SMALL, "here")


def test_masks_and_a_tied_head_are_left_out(tensors: Tensors) -> None:
    masks = {f"transformer.h.{n}.attn.{name}": torch.ones(1) for n in range(2) for name in ("bias", "masked_bias")}
    found = taken({**tensors, **masks, "lm_head.weight": tensors["transformer.wte.weight"].clone()}, SMALL, "here")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (torch.float32, None),
        (torch.bfloat16, "its bfloat16 weights are kept as float32, which holds each of them exactly"),
        (torch.float16, "its float16 weights are kept as float32, which holds each of them exactly"),
        (torch.float64, "its float64 weights are rounded to float32"),
    ],
)
def test_other_kinds_of_numbers_become_float32_with_a_note(
    kind: torch.dtype, words: str | None, tensors: Tensors
) -> None:
    kinds = {name: tensor.to(kind) for name, tensor in tensors.items()}
    found = taken({**kinds, "lm_head.weight": kinds["transformer.wte.weight"]}, SMALL, "here")
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert all(torch.equal(found[name], kinds[name].float()) for name in found)
    assert kinds_noted(kinds) == (() if words is None else (words,))


def test_a_layout_finds_names_and_turns_the_matrices_of_blocks_alone() -> None:
    stems = {stem: stem.replace("transformer.h.{}", "blk.{}") for stem in plain.STEMS}
    layout = plain.Layout(stems, transposed=True)
    assert layout.theirs("transformer.h.11.attn.c_attn.weight") == "blk.11.attn.c_attn.weight"
    assert layout.theirs("transformer.ln_f.bias") == "transformer.ln_f.bias"
    matrix, vector = torch.ones(2, 3), torch.ones(4)
    assert layout.turned("transformer.h.0.mlp.c_fc.weight", matrix).shape == (3, 2)
    assert layout.turned("transformer.wte.weight", matrix).shape == (2, 3)
    assert layout.turned("transformer.h.0.ln1.weight", vector).shape == (4,)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_formulas_are_the_model(activation: str, bias: bool) -> None:
    model = made_model(SMALL.model_copy(update={"activation": activation, "bias": bias}))
    layout = plain.Layout({stem: stem for stem in plain.STEMS})
    reader = plain.reader(model.weights, layout, model.config)
    assert reader.logits64 is not None
    idx = torch.randint(61, (3, 12))
    with torch.inference_mode():
        exact = model.model().double()(idx)
        torch.testing.assert_close(reader.logits64(idx), exact, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(reader.logits(idx).double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))

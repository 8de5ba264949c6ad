"""Exported models of many shapes, beside transformers' own code for them; the oracle shares nothing with smallgpt."""

from pathlib import Path

import pytest
import torch

from smallgpt.domain.config import GPTConfig
from smallgpt.infrastructure.formats import hugging_face, plain
from tests.ecosystem.parity_table import configs, exported, random_model, row

ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-14}
"""As a share of the largest number."""


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    ("name", "config"), configs(), ids=[f"{name}, {c.activation}, bias {c.bias}" for name, c in configs()]
)
def test_a_model_computes_and_learns_as_in_transformers(name: str, config: GPTConfig, dtype: torch.dtype) -> None:
    found = row(name, config, dtype)
    for difference, largest in (found.logits, found.gradients, found.weights):
        assert difference <= ROUNDING[dtype] * largest
    difference, largest = found.loss
    assert difference <= ROUNDING[torch.float32] * largest, "both sides take it in float32"
    equal, asked = found.greedy
    assert equal == asked == min(64, config.block_size - min(8, config.block_size - 1))


def test_the_formulas_are_a_second_opinion(tmp_path: Path) -> None:
    for number, (_, config) in enumerate(configs()[4:8]):
        folder = tmp_path / str(number)
        folder.mkdir()
        theirs = exported(random_model(config), folder)
        tensors = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
        idx = torch.arange(60).view(2, 30)
        ours = plain.reader(tensors, hugging_face.layout(tensors), config).logits(idx)
        torch.testing.assert_close(ours, theirs(idx).logits.detach(), rtol=1e-5, atol=1e-5)

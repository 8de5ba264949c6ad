"""Scoring a whole stream: every token is predicted once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.evaluation_blocks import evaluation_blocks
from tests.infrastructure.streams import stream


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    count=st.integers(2, 100),
    block_size=st.integers(1, 12),
    batch=st.integers(1, 4),
    start=st.sampled_from([None, 500]),
    limit=st.none() | st.integers(1, 120),
)
def test_evaluation_predicts_every_token_once(
    count: int, block_size: int, batch: int, start: int | None, limit: int | None
) -> None:
    tokens = np.arange(1, count + 1, dtype=np.uint16)
    parts = stream(tokens, [min(7, count), min(8, count)])
    pairs = list(evaluation_blocks(parts, block_size, start, max_tokens=limit, batch=batch))
    inputs = torch.cat([x.flatten() for x, _ in pairs])
    targets = torch.cat([y.flatten() for _, y in pairs])
    real = targets != -100
    expected = tokens.tolist() if start is not None else tokens.tolist()[1:]
    assert targets[real].tolist() == expected[:limit]
    context = ([] if start is None else [start]) + tokens.tolist()
    assert inputs[real].tolist() == context[: int(real.sum())]
    assert real.nonzero().flatten().tolist() == list(range(int(real.sum())))  # only the end is filled up
    assert all(x.shape == y.shape and x.shape[1] == block_size and x.shape[0] <= batch for x, y in pairs)
    assert inputs.dtype == targets.dtype == torch.int64


def test_nothing_to_evaluate() -> None:
    with pytest.raises(DataError, match="1 tokens leave nothing to predict"):
        next(evaluation_blocks(np.array([3], dtype=np.uint16), 8, None))

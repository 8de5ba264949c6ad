"""A whole stream in blocks, for scoring."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.tokenizers import AnyTokenizer
from smallgpt.infrastructure.tokens import Ids, Tokens
from smallgpt.infrastructure.windows import NO_TARGET

BLOCKS_AT_ONCE = 32


def text_tokens(tokenizer: AnyTokenizer, texts: Iterable[str]) -> tuple[Ids, int]:
    """Texts as a data folder would hold them, each followed by end-of-text: (tokens,) uint32, and the texts' UTF-8 bytes."""
    stop = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], dtype=np.uint32)
    parts: list[npt.NDArray[np.uint32]] = [stop[:0]]
    text_bytes = 0
    for text in texts:
        parts += [tokenizer.encode_array(text), stop]
        text_bytes += len(text.encode())
    return np.concatenate(parts), text_bytes


def evaluation_blocks(
    tokens: Tokens | Ids,
    block_size: int,
    start: int | None,
    *,
    max_tokens: int | None = None,
    batch: int = BLOCKS_AT_ONCE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive blocks of the stream [start] + tokens: inputs and targets, (up to batch, block_size) int64.

    With start (the end-of-text id) every token is predicted once, without it every one but the first; max_tokens keeps
    to the first ones. The last block is filled up, its targets with -100. Raises DataError when nothing is to predict.
    """
    first = 0 if start is not None else 1
    end = len(tokens) if max_tokens is None else min(len(tokens), first + max_tokens)
    if end <= first:
        raise DataError(f"{len(tokens)} tokens leave nothing to predict; prepare more validation text")
    for low in range(first, end, block_size * batch):
        high = min(end, low + block_size * batch)
        shape = (-(-(high - low) // block_size), block_size)
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, NO_TARGET, dtype=np.int64)
        targets.ravel()[: high - low] = tokens[low:high]
        context = tokens[max(low - 1, 0) : high - 1]
        inputs.ravel()[high - low - len(context) : high - low] = context
        if low == 0 and start is not None:
            inputs[0, 0] = start
        yield torch.from_numpy(inputs), torch.from_numpy(targets)

"""Continuing one sequence of tokens until it ends."""

from collections.abc import Iterator, Sequence

from smallgpt.application.engine import Engine
from smallgpt.application.evaluation import eval_mode
from smallgpt.application.streams import Request
from smallgpt.domain.gpt import GPT
from smallgpt.domain.sampling import Sampling


def continuation(
    model: GPT, ids: Sequence[int], max_new_tokens: int, sampling: Sampling, *, seed: int, end: int | None
) -> Iterator[int]:
    """Yield new token ids after `ids` (at least one), up to max_new_tokens and stopping before `end`.

    The same seed gives the same tokens, whatever else draws random numbers.
    """
    engine = Engine(model, graphs=False)  # for one text, and within a training run that may have said no to them
    stream = engine.add(Request(ids, max_new_tokens, sampling, seed, end))
    with eval_mode(model):
        while not stream.finish:
            for _, tokens in engine.step():
                yield from (token.id for token in tokens)

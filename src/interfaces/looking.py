"""How a run looks at its model: validation loss and a continued prompt."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from smallgpt.application.evaluation import Blocks, evaluate
from smallgpt.application.generation import continuation
from smallgpt.domain.config import EvaluationConfig
from smallgpt.domain.errors import DataError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.metrics import Score
from smallgpt.domain.processes import ALONE, Processes
from smallgpt.domain.sampling import Sampling
from smallgpt.infrastructure.evaluation_blocks import evaluation_blocks
from smallgpt.infrastructure.token_store import TokenStore
from smallgpt.infrastructure.tokenizers import AnyTokenizer

SAMPLING = Sampling(temperature=0.8, top_k=50)  # of the samples shown while training


def evaluator(
    store: TokenStore, max_tokens: int, processes: Processes
) -> Callable[[GPT, AbstractContextManager[Any], bool], Score]:
    """Scores a model on the validation split: all of it, or its first max_tokens."""

    def score(model: GPT, autocast: AbstractContextManager[Any], whole: bool) -> Score:
        tokens = None if whole else max_tokens
        return evaluate_split(model, store, "validation", max_tokens=tokens, autocast=autocast, processes=processes)

    return score


def evaluate_split(
    model: GPT,
    store: TokenStore,
    split: str,
    *,
    max_tokens: int | None = None,
    autocast: AbstractContextManager[Any] | None = None,
    processes: Processes = ALONE,
    progress: Callable[[Blocks, int], Blocks] = lambda blocks, tokens: blocks,
) -> Score:
    """Score a model on a split's first max_tokens, or on all of it; a part's bytes are its share of the split's.

    `progress` is given the blocks and the number of tokens in them, and hands the blocks on as they are asked for.
    """
    tokens, text_bytes = store.tokens(split), store.text_bytes(split)
    if max_tokens is not None and max_tokens < len(tokens) and text_bytes is not None:
        text_bytes = round(text_bytes * max_tokens / len(tokens))
    blocks = evaluation_blocks(tokens, model.config.block_size, store.end_of_text, max_tokens=max_tokens)
    return evaluate(model, progress(blocks, len(tokens)), text_bytes, autocast=autocast, processes=processes)


def sampler(
    config: EvaluationConfig, seed: int, tokenizer: AnyTokenizer | None, vocab_size: int
) -> Callable[[GPT, int], dict[str, Any]]:
    """Continues the configured prompt with the same random numbers every time; without a tokenizer, ids are all there is.

    No id from vocab_size on is taken: those are padding.
    """
    prompt, ids = _beginning(config.prompt, tokenizer)
    if not ids:
        ids = [tokenizer.end_of_text if tokenizer is not None and tokenizer.end_of_text is not None else 0]
    sampling = replace(SAMPLING, n_tokens=vocab_size)

    def sample(model: GPT, step: int) -> dict[str, Any]:
        end = tokenizer.end_of_text if tokenizer is not None else None
        new = list(continuation(model, ids, config.sample_tokens, sampling, seed=seed, end=end))
        text = tokenizer.decode(new) if tokenizer is not None else " ".join(map(str, new))
        return {"prompt": prompt, "text": prompt + text}

    return sample


def _beginning(prompt: str, tokenizer: AnyTokenizer | None) -> tuple[str, list[int]]:
    """The prompt and its ids; none where it cannot be written in them, since training goes on without samples too."""
    try:
        return (prompt, tokenizer.encode(prompt)) if tokenizer is not None else ("", [])
    except DataError:  # a table of characters without one of the prompt's
        return "", []

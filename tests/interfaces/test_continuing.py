"""Texts from the engine are those of the model without a cache, one token at a time, whatever helps to make them sooner."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.domain.sampling import Sampling, next_token_at
from smallgpt.interfaces.continuing import Continuation, Continuer, Settings
from smallgpt.interfaces.opening import OpenedModel, open_model
from tests.interfaces.written_model import BLOCK_SIZE, END, write_model

PROMPTS = ["", "abcde abcde abc", "e" * (BLOCK_SIZE - 1), "dab " * BLOCK_SIZE]  # none; within the block; past it
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=0.8),
    Sampling(temperature=1.2, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2),
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return open_model(write_model(tmp_path_factory.mktemp("model")))


def recomputed(
    opened: OpenedModel, prompt: str, seed: int, sampling: Sampling, max_new_tokens: int, least: int = 0
) -> tuple[list[int], list[torch.Tensor]]:
    """The tokens that follow, without end-of-text, and the log-probabilities (257,) at each place; every window anew."""
    ids = list(prompt.encode()) or [END]
    start, generator, logprobs = len(ids), torch.Generator().manual_seed(seed), []
    sampling = Sampling(**{**vars(sampling), "n_tokens": 257})
    while len(ids) - start < max_new_tokens:
        with torch.inference_mode():
            logits = opened.model(torch.tensor([ids[-BLOCK_SIZE:]]))[:, -1]
        logprobs.append(logits[0, :257].log_softmax(-1))
        if len(ids) - start < least:
            logits = logits.clone()
            logits[:, END] = -1e9
        draw = torch.zeros(1, 1, dtype=torch.float64)
        if sampling.temperature > 0:
            draw = torch.rand(1, 1, dtype=torch.float64, generator=generator)
        chosen = int(next_token_at(logits, torch.tensor([ids]), sampling, draw))
        if chosen == END:
            break
        ids.append(chosen)
    return ids[start:], logprobs


def ids_of(text: Continuation) -> list[int]:
    return [token.id for token in text.tokens]


def run(continuer: Continuer, texts: list[Continuation], settings: Settings) -> list[Continuation]:
    """The texts, once they have ended; the pieces that came are they."""
    shown = {id(text): "" for text in texts}
    for text, piece in continuer.run(texts, settings):
        shown[id(text)] += piece
    assert [shown[id(text)] for text in texts] == [text.text for text in texts]
    return texts


@pytest.mark.parametrize("n_draft", [0, 4])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "plain", "filtered"])
def test_texts_together_are_those_of_the_uncached_model_alone(
    opened: OpenedModel, sampling: Sampling, n_draft: int
) -> None:
    settings = Settings(sampling, max_new_tokens=2 * BLOCK_SIZE)
    texts = [Continuation(prompt, seed) for prompt in PROMPTS for seed in (3, 4)]
    run(Continuer(opened, 3, n_draft=n_draft), texts, settings)  # in rounds: there is room for three
    for text in texts:
        expected, _ = recomputed(opened, text.prompt, text.seed, sampling, 2 * BLOCK_SIZE)
        assert ids_of(text) == expected
        assert text.text == bytes(expected).decode(errors="replace")
        assert text.end == ("length" if len(expected) == 2 * BLOCK_SIZE else "end-of-text")
    assert {text.end for text in texts} == ({"length"} if sampling.temperature == 0 else {"length", "end-of-text"})


def test_guesses_that_were_right_are_counted(opened: OpenedModel) -> None:
    continuer, text = Continuer(opened, past_block="refill", n_draft=3), Continuation("abab", 4)
    settings = Settings(Sampling(temperature=0.6), 300, 300)
    steps = len(list(continuer.run([text], settings)))
    assert text.right_guesses == 300 - steps
    assert text.guesses is not None
    assert text.guesses >= text.right_guesses > 0
    (plain,) = run(Continuer(opened), [Continuation("abc", 0)], Settings(max_new_tokens=5))
    assert plain.guesses is None


def test_a_minimum_keeps_the_end_away(opened: OpenedModel) -> None:
    sampling = Sampling(temperature=1.0)
    seed = next(seed for seed in range(99) if len(recomputed(opened, "abc", seed, sampling, 30)[0]) < 15)
    (text,) = run(Continuer(opened), [Continuation("abc", seed)], Settings(sampling, 30, min_new_tokens=20))
    assert ids_of(text) == recomputed(opened, "abc", seed, sampling, 30, least=20)[0]
    assert len(text.tokens) >= 20


@pytest.mark.parametrize("n_draft", [0, 4])
def test_a_stop_ends_the_text_before_it_and_counts_its_tokens(opened: OpenedModel, n_draft: int) -> None:
    sampling = Sampling(temperature=0.8)
    whole = bytes(recomputed(opened, "abc", 3, sampling, 60)[0]).decode(errors="replace")
    stop = whole[20:23]  # three tokens at least
    (text,) = run(
        Continuer(opened, n_draft=n_draft), [Continuation("abc", 3)], Settings(sampling, 60, stops=(stop, "zzz"))
    )
    before = whole[: whole.index(stop)]
    assert (text.text, text.end) == (before, "stop")
    assert bytes(ids_of(text)).decode(errors="replace") == before + stop


def test_a_stop_within_what_a_step_gives_leaves_the_rest_of_the_step_out(opened: OpenedModel) -> None:
    settings = Settings(Sampling(temperature=0.6), 300, 300)
    whole, sizes = Continuation("abab", 4), [0]
    for text, _ in Continuer(opened, past_block="refill", n_draft=3).run([whole], settings):
        sizes.append(len(text.tokens))
    said = bytes(ids_of(whole))
    firsts = [before + 1 for before, after in pairwise(sizes) if after > before + 1]
    size, stop = next(
        (size, stop)
        for size in firsts
        for stop in [said[max(0, size - 12) : size]]
        if stop.isascii() and said.index(stop) + len(stop) == size
    )
    stopping = replace(settings, stops=(stop.decode(),))
    (text,) = run(Continuer(opened, past_block="refill", n_draft=3), [Continuation("abab", 4)], stopping)
    assert (text.end, bytes(ids_of(text))) == ("stop", said[:size])
    assert text.right_guesses == sum(after - before - 1 for before, after in pairwise(sizes) if before < size)


@pytest.mark.parametrize("n_draft", [0, 4])
def test_log_probabilities_are_the_uncached_models_own(opened: OpenedModel, n_draft: int) -> None:
    sampling = Sampling(temperature=0.7, top_k=5)  # which change what is chosen, not how likely the model finds it
    settings = Settings(sampling, 2 * BLOCK_SIZE, logprobs=3)
    texts = [Continuation(prompt, 5) for prompt in PROMPTS]
    run(Continuer(opened, 4, n_draft=n_draft), texts, settings)
    for text in texts:
        ids, expected = recomputed(opened, text.prompt, 5, sampling, 2 * BLOCK_SIZE)
        assert ids_of(text) == ids
        for token, logprobs in zip(text.tokens, expected, strict=False):
            assert token.logprob == pytest.approx(float(logprobs[token.id]), abs=1e-4)
            best = logprobs.topk(3)
            assert [logprob for _, logprob in token.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_none_of_the_likeliest_leaves_the_tokens_own_log_probability(opened: OpenedModel) -> None:
    (text,) = run(Continuer(opened), [Continuation("abc", 5)], Settings(max_new_tokens=3, logprobs=0))
    facts = text.as_dict(opened.tokenizer)  # type: ignore[arg-type]
    assert [set(each) for each in facts["logprobs"]] == [{"id", "token", "logprob", "top"}] * 3
    assert [each["top"] for each in facts["logprobs"]] == [[], [], []]


def test_refilling_past_the_block_reads_the_last_half_of_it_again(opened: OpenedModel) -> None:
    settings = Settings(Sampling(temperature=0.8), max_new_tokens=3 * BLOCK_SIZE)
    (slid,) = run(Continuer(opened), [Continuation("abc", 3)], settings)
    (refilled,) = run(Continuer(opened, past_block="refill"), [Continuation("abc", 3)], settings)
    within = BLOCK_SIZE - len("abc") + 1  # the last of them follows a full block
    assert ids_of(slid)[:within] == ids_of(refilled)[:within]
    assert ids_of(slid) != ids_of(refilled)


def test_who_is_told_to_stop_keeps_what_came_and_begins_nothing(opened: OpenedModel) -> None:
    calls: Iterator[bool] = iter([False] * 6 + [True] * 9)
    texts = [Continuation("abc", 1), Continuation("b", 2), Continuation("c", 3)]
    continuer = Continuer(opened, 2)
    settings = Settings(max_new_tokens=500, min_new_tokens=500)
    pieces = list(continuer.run(texts, settings, lambda: next(calls)))
    assert [text.end for text in texts] == ["interrupted", "interrupted", None]
    assert [len(text.tokens) for text in texts] == [6, 6, 0]
    assert "".join(piece for text, piece in pieces if text is texts[0]) == texts[0].text
    assert continuer.engine.n_free == 2


def test_a_reader_that_leaves_frees_the_engine(opened: OpenedModel) -> None:
    continuer = Continuer(opened)
    pieces = continuer.run([Continuation("abc", 1)], Settings(max_new_tokens=500))
    next(pieces)
    assert continuer.engine.n_free == 0
    pieces.close()
    assert continuer.engine.n_free == 1


def test_what_cannot_be_is_refused(opened: OpenedModel) -> None:
    with pytest.raises(ConfigError, match="a stop text is empty"):
        Settings(stops=("a", ""))
    with pytest.raises(ConfigError, match="logprobs is -1"):
        Settings(logprobs=-1)
    with pytest.raises(ConfigError, match="max-new-tokens is 0"):
        Settings(max_new_tokens=0)
    with pytest.raises(ConfigError, match="min-new-tokens is 5"):
        Settings(max_new_tokens=4, min_new_tokens=5)
    blank = OpenedModel(opened.model, None, None, Path("there"), None)
    with pytest.raises(CheckpointError, match=r"there has no tokenizer\.json"):
        Continuer(blank)

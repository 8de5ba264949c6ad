"""Every sequence that the engine continues gets the tokens that the model alone, without a cache, would give it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from smallgpt.application.engine import Engine
from smallgpt.application.prompt_lookup import lookup
from smallgpt.application.streams import Request, Stream, Token
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import ConfigError, NumericsError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.sampling import Sampling, next_token_at

CONFIG = GPTConfig(block_size=16, vocab_size=43, n_layer=2, n_head=2, n_embd=32, dropout=0.0)
GREEDY = Sampling(temperature=0)
SAMPLINGS = [
    GREEDY,
    Sampling(temperature=0.7, top_k=10),
    Sampling(top_p=0.9, repetition_penalty=1.3, n_tokens=40),
    Sampling(temperature=1.5, min_p=0.05),
]


def varied_model() -> GPT:
    """Its next token depends on all before it: as initialised, a model repeats its last token."""
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    for name, parameter in model.named_parameters():
        if ".h." in name and parameter.dim() == 2:
            parameter.data.mul_(10)
    return model


MODEL = varied_model()


@torch.inference_mode()
def cropped_and_recomputed(request: Request) -> list[int]:
    """As the seed generates: the last block_size tokens, computed anew for every token."""
    ids, generator = list(request.prompt), torch.Generator().manual_seed(request.seed)
    while len(ids) < len(request.prompt) + request.max_new_tokens:
        logits = MODEL(torch.tensor([ids[-CONFIG.block_size :]]))[:, -1]
        draw = torch.zeros(1, 1, dtype=torch.float64)
        if request.sampling.temperature > 0:
            draw = torch.rand(1, 1, dtype=torch.float64, generator=generator)
        new = int(next_token_at(logits, torch.tensor([ids]), request.sampling, draw))
        if new == request.end:
            break
        ids.append(new)
    return ids


def run(engine: Engine, requests: list[Request]) -> list[Stream]:
    """All of them, each let in as soon as there is room."""
    waiting, streams = list(requests), []
    while waiting or engine.n_free < engine.n_streams:
        while waiting and engine.n_free:
            streams.append(engine.add(waiting.pop(0)))
        engine.step()
    return streams


@pytest.mark.parametrize("n_draft", [0, 3])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_mixed_batch_gives_what_each_gives_alone_at_every_position_and_past_the_block(
    sampling: Sampling, n_draft: int
) -> None:
    lengths = [1, 15, 3, 16, 17, 40, 2]  # around the block of 16, and far past it
    requests = [
        Request([(7 * i + n) % 40 for i in range(n)], 25 + n % 7, sampling, seed=n, end=5 if n % 2 else None)
        for n in lengths
    ]
    for stream in run(Engine(MODEL, 3, n_draft=n_draft), requests):
        assert stream.ids == cropped_and_recomputed(stream.request)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=14), st.integers(1, 5), st.integers(0, 3))
@hypothesis_settings(max_examples=25)
def test_guesses_of_any_length_change_no_token(prompt: list[int], n_draft: int, which: int) -> None:
    request = Request(prompt, 12, SAMPLINGS[which], seed=3)
    (stream,) = run(Engine(MODEL, n_draft=n_draft), [request])
    assert stream.ids == cropped_and_recomputed(request)


def test_right_guesses_save_passes() -> None:
    request = Request(
        [1, 2, 3], 13, Sampling(temperature=0, repetition_penalty=0.01)
    )  # soon says the same again and again
    (plain,) = run(Engine(MODEL), [request])
    (guessed,) = run(Engine(MODEL, n_draft=4), [request])
    assert guessed.ids == plain.ids
    assert guessed.passes < plain.passes == 13


@pytest.mark.parametrize("n_tokens", range(8, 14))
def test_every_right_guess_is_a_pass_saved_also_where_the_text_ends_by_length(n_tokens: int) -> None:
    request = Request([1, 2, 3], n_tokens, Sampling(temperature=0, repetition_penalty=0.01))
    (stream,) = run(Engine(MODEL, n_draft=4), [request])
    assert stream.n_new == stream.passes + stream.right_guesses == n_tokens


def test_different_settings_share_a_batch() -> None:
    requests = [Request([1, 2, 3], 20, sampling, seed=1) for sampling in SAMPLINGS]
    for stream in run(Engine(MODEL, 4), requests):
        assert stream.ids == cropped_and_recomputed(stream.request)


def test_streams_come_and_go_between_steps() -> None:
    engine = Engine(MODEL, 3)
    first, second, third = (engine.add(Request([n], 12, GREEDY)) for n in (1, 2, 3))
    for _ in range(4):
        engine.step()
    engine.remove(first)  # its row is taken by the last one
    engine.remove(first)
    late = engine.add(Request([4, 5], 12, GREEDY))
    gone = engine.add
    with pytest.raises(ConfigError, match="all 3 streams are in use"):
        gone(Request([1], 1))
    while engine.n_free < 3:
        engine.step()
    for stream in (second, third, late):
        assert stream.ids == cropped_and_recomputed(stream.request)
    assert first.n_new == 4
    assert first.finish is None


def test_one_that_waits_can_be_removed() -> None:
    engine = Engine(MODEL, 2)
    engine.remove(engine.add(Request([1], 5)))
    assert engine.n_free == 2
    assert engine.step() == []


def test_it_ends_at_the_end_token_without_giving_it_or_at_the_length() -> None:
    ids = cropped_and_recomputed(Request([1, 2], 10, GREEDY))
    (stream,) = run(Engine(MODEL), [Request([1, 2], 10, GREEDY, end=ids[5])])
    cut = ids[: ids.index(ids[5], 2)]
    assert (stream.ids, stream.finish) == (cut, "end")
    other = next(id for id in range(CONFIG.vocab_size) if id not in ids)
    (stream,) = run(Engine(MODEL), [Request([1, 2], 10, GREEDY, end=other)])
    assert (stream.n_new, stream.finish) == (10, "length")


def test_the_end_is_not_chosen_before_the_least_number_of_tokens() -> None:
    request = Request([1, 2], 10, GREEDY)
    end = cropped_and_recomputed(request)[2]
    (stream,) = run(Engine(MODEL), [replace(request, end=end, min_new_tokens=4)])
    assert stream.n_new >= 4
    assert end not in stream.ids[2:6]


def test_log_probabilities_are_the_models_own_before_temperature_and_filters() -> None:
    engine = Engine(MODEL, 2)
    request = Request([1, 2, 3], 6, Sampling(temperature=0.3, top_k=2, n_tokens=40), alternatives=4)
    stream = engine.add(request)
    plain = engine.add(replace(request, alternatives=None))
    tokens: dict[Stream, list[Token]] = {stream: [], plain: []}
    while engine.n_free < 2:
        for which, given_tokens in engine.step():
            tokens[which] += given_tokens
    with torch.inference_mode():
        expected = MODEL(torch.tensor([stream.ids]))[0, 2:-1, :40].log_softmax(-1)
    assert [token.id for token in tokens[stream]] == stream.ids[3:]
    for token, row in zip(tokens[stream], expected, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        best = row.topk(4)
        assert [id for id, _ in token.alternatives] == best.indices.tolist()
        assert [value for _, value in token.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert all(token.logprob is None and not token.alternatives for token in tokens[plain])


def test_refilling_reads_the_last_half_block_and_goes_on_from_there() -> None:
    (stream,) = run(Engine(MODEL, past_block="refill"), [Request([1, 2, 3], 40, GREEDY)])
    ids, start = [1, 2, 3], 0
    with torch.inference_mode():
        while len(ids) < 43:
            if len(ids) - start > CONFIG.block_size:
                start = len(ids) - CONFIG.block_size // 2
            ids.append(int(MODEL(torch.tensor([ids[start:]]))[0, -1].argmax()))
    assert stream.ids == ids


def test_a_model_that_is_not_finite_is_an_error() -> None:
    model = GPT(CONFIG).eval()
    model.transformer.ln_f.weight.data.fill_(torch.nan)
    engine = Engine(model)
    engine.add(Request([1], 5))
    with pytest.raises(NumericsError, match="not finite"):
        engine.step()


def test_what_was_not_finite_spoils_nobody_who_comes_later() -> None:
    model = varied_model()
    engine = Engine(model, 3)
    spoiled = engine.add(Request([1] * 8, 5, GREEDY))
    engine.step()
    engine.cache.slots[:, 0, :, :, 3] = torch.nan
    with pytest.raises(NumericsError):
        engine.step()
    engine.remove(spoiled)
    for prompt in ([1], [2, 3]):  # rows of different lengths: slots behind the shorter one are masked
        engine.add(Request(prompt, 5, GREEDY))
    while engine.n_free < 3:
        engine.step()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": []}, "the prompt has no tokens"),
        ({"max_new_tokens": 0}, "max-new-tokens is 0"),
        ({"min_new_tokens": -1}, "min-new-tokens is -1"),
        ({"min_new_tokens": 9}, "min-new-tokens is 9; it must be between 0 and max-new-tokens, 8"),
    ],
)
def test_a_request_that_cannot_be_says_why(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Request(**{"prompt": [1], "max_new_tokens": 8} | settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "words"), [({"past_block": "wrap"}, "past-block is 'wrap'"), ({"n_draft": -1}, "-1")]
)
def test_an_engine_that_cannot_be_says_why(setting: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Engine(MODEL, **setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "draft"),
    [
        ([1, 2, 3, 4, 9, 2, 3, 4], [9, 2]),  # the last three came before
        ([5, 3, 4, 8, 7, 3, 4, 6, 1, 3, 4], [6, 1]),  # the last two did, twice: the latest counts
        ([1, 2, 3], []),
        ([1], []),
        ([7, 7, 7, 7], [7]),
    ],
)
def test_a_guess_is_what_followed_the_same_words_before(ids: list[int], draft: list[int]) -> None:
    assert lookup(ids, 2) == draft
    assert lookup(ids, 0) == []

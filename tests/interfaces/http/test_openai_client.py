"""OpenAI's own Python client gets from the server what it gets from OpenAI."""

import math
import re

import openai
import pytest

from smallgpt.application.engine import Engine
from smallgpt.application.streams import Request
from smallgpt.domain.sampling import Sampling
from smallgpt.infrastructure.text_stream import TextStream
from smallgpt.infrastructure.tokenizers import byte_tokenizer
from tests.loopback.model_server import ModelServer, tiny_model


def text_of_engine(prompt: str, max_tokens: int, seed: int, temperature: float = 1.0, top_k: int | None = None) -> str:
    """What the engine alone writes."""
    tokenizer = byte_tokenizer()
    engine, text = Engine(tiny_model()), TextStream(tokenizer)
    sampling = Sampling(temperature, top_k, n_tokens=tokenizer.vocab_size)
    stream = engine.add(Request(tokenizer.encode(prompt), max_tokens, sampling, seed, tokenizer.end_of_text))
    parts = []
    while not stream.finish:
        parts += [text.feed(token.id) for _, tokens in engine.step() for token in tokens]
    return "".join([*parts, text.flush()])


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 5}])
def test_a_completion_is_the_engines_text(client: openai.OpenAI, seed: int, settings: dict[str, float]) -> None:
    extra = {"top_k": settings["top_k"]} if "top_k" in settings else {}
    done = client.completions.create(
        model="tiny",
        prompt="Once upon",
        max_tokens=60,  # past the block of 32
        seed=seed,
        temperature=settings.get("temperature", 1.0),
        extra_body=extra,
    )
    assert done.choices[0].text == text_of_engine("Once upon", 60, seed, **settings)  # type: ignore[arg-type]
    assert done.usage is not None
    assert done.usage.prompt_tokens == len("Once upon")
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.object == "text_completion"


def test_a_stream_gives_the_same_text_a_chunk_for_each_token(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="Tom", max_tokens=50, seed=3)
    stream = list(
        client.completions.create(
            model="tiny", prompt="Tom", max_tokens=50, seed=3, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in stream[:-1]) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in stream[:-2]] == [None] * (len(stream) - 2)
    assert stream[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert not stream[-1].choices
    assert stream[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= len(stream) - 1 <= whole.usage.completion_tokens + 1
    assert len({chunk.id for chunk in stream}) == 1


def test_a_seed_repeats_a_text_and_without_one_texts_differ(client: openai.OpenAI) -> None:
    def text(**settings: int) -> str:
        return client.completions.create(model="tiny", prompt="Mia", max_tokens=40, **settings).choices[0].text  # type: ignore[call-overload,no-any-return]

    assert text(seed=5) == text(seed=5)
    assert text(seed=5) != text(seed=6)
    assert text() != text()


def test_n_continues_each_prompt_with_seeds_in_a_row(client: openai.OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt=["Tom", "Mia"], n=3, max_tokens=12, seed=4)
    assert [choice.index for choice in done.choices] == list(range(6))
    wanted = [text_of_engine(prompt, 12, 4 + i) for prompt in ("Tom", "Mia") for i in range(3)]
    assert [choice.text for choice in done.choices] == wanted
    assert done.usage is not None
    assert done.usage.prompt_tokens == 6


def test_prompts_are_texts_or_ids(client: openai.OpenAI) -> None:
    def texts(prompt: object) -> list[str]:
        done = client.completions.create(model="tiny", prompt=prompt, max_tokens=8, seed=1)  # type: ignore[call-overload]
        return [choice.text for choice in done.choices]

    assert texts("Tom") == texts(["Tom"]) == texts([84, 111, 109]) == texts([[84, 111, 109]])
    assert texts([[84, 111, 109], [77]]) == texts(["Tom", "M"])


def test_log_probabilities_are_the_models_own(client: openai.OpenAI) -> None:
    arguments = {"model": "tiny", "prompt": "Tom", "max_tokens": 6, "seed": 1, "logprobs": 3}
    done = client.completions.create(**arguments, extra_body={"min_tokens": 6})  # type: ignore[call-overload]
    found = done.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 6
    assert all(logprob < 0 for logprob in found.token_logprobs)
    assert all(3 <= len(top) <= 4 and max(top.values()) < 0 for top in found.top_logprobs)
    assert found.text_offset[0] == 0
    assert sorted(found.text_offset) == found.text_offset
    streamed = list(client.completions.create(**arguments, stream=True, extra_body={"min_tokens": 6}))  # type: ignore[call-overload]
    assert [chunk.choices[0].logprobs.token_logprobs[0] for chunk in streamed] == found.token_logprobs
    assert [chunk.choices[0].logprobs.text_offset[0] for chunk in streamed] == found.text_offset
    none = client.completions.create(**{**arguments, "logprobs": 0})  # type: ignore[call-overload]
    assert none.choices[0].logprobs.top_logprobs[0] == {}
    every = client.completions.create(**{**arguments, "logprobs": 20, "prompt": "é"})  # type: ignore[call-overload]
    assert math.exp(max(every.choices[0].logprobs.top_logprobs[0].values())) < 1


def test_a_token_that_is_a_part_of_a_character_is_named_by_its_bytes(client: openai.OpenAI) -> None:
    arguments = {"model": "tiny", "prompt": "é", "max_tokens": 30, "seed": 1, "extra_body": {"min_tokens": 30}}
    done = client.completions.create(**arguments, logprobs=20)  # type: ignore[call-overload]
    found = done.choices[0].logprobs
    parts = [name for name in found.tokens if name.startswith("bytes:")]
    assert len(parts) > 5, "half of the model's tokens are bytes above 127"
    assert all(re.fullmatch(r"bytes:\\x[89a-f][0-9a-f]", name) for name in parts)
    assert not [name for top in found.top_logprobs for name in top if "\ufffd" in name]
    for name, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert top[name] == logprob
        assert len(top) == 20 + (logprob < sorted(top.values())[-20]), "none is dropped"
    assert not any("bytes:" in choice.text for choice in done.choices)
    streamed = list(client.completions.create(**arguments, logprobs=20, stream=True))  # type: ignore[call-overload]
    assert [chunk.choices[0].logprobs.tokens[0] for chunk in streamed] == found.tokens
    assert [chunk.choices[0].logprobs.top_logprobs[0] for chunk in streamed] == found.top_logprobs


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="Tom", max_tokens=30, seed=2).choices[0].text
    stop = next(char for char in whole[5:] if char.isascii() and char.isprintable())
    for given in (stop, ["never-there", stop]):
        done = client.completions.create(model="tiny", prompt="Tom", max_tokens=30, seed=2, stop=given)
        assert done.choices[0].text == whole[: whole.index(stop)]
        assert done.choices[0].finish_reason == "stop"


def test_echo_begins_with_the_prompt(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="tiny", prompt="Tom", max_tokens=9, seed=1)
    echoed = client.completions.create(model="tiny", prompt="Tom", max_tokens=9, seed=1, echo=True)
    stream = client.completions.create(model="tiny", prompt="Tom", max_tokens=9, seed=1, echo=True, stream=True)
    assert echoed.choices[0].text == "Tom" + plain.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in stream) == echoed.choices[0].text


def test_a_chat_continues_the_story_of_its_messages(client: openai.OpenAI) -> None:
    messages = [
        {"role": "user", "content": "Tom had a kite."},
        {"role": "assistant", "content": " It was red."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": " day"}]},
    ]
    arguments = {"model": "tiny", "messages": messages, "max_completion_tokens": 20, "seed": 3}
    done = client.chat.completions.create(**arguments, logprobs=True, top_logprobs=2)  # type: ignore[call-overload]
    wanted = text_of_engine("Tom had a kite. It was red. One day", 20, 3)
    assert done.choices[0].message.content == wanted
    assert done.choices[0].message.role == "assistant"
    first = done.choices[0].logprobs.content[0]
    assert len(first.top_logprobs) == 2
    assert first.logprob < 0
    assert bytes(first.bytes).decode("utf-8", "replace") == first.token
    stream = list(client.chat.completions.create(**arguments, stream=True))  # type: ignore[call-overload]
    assert stream[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted
    assert stream[-1].choices[0].finish_reason == done.choices[0].finish_reason


def test_the_model_is_listed_and_found_by_its_id(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "smallgpt"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'; this server has 'tiny'"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client.completions.create(model="gpt-4", prompt="Tom")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        client.completions.create(model="tiny", prompt="Tom", temperature=-1)
    assert told.value.param == "temperature"
    assert told.value.type == "invalid_request_error"
    assert "-1" in told.value.message


def test_many_streams_at_once_are_each_their_own(server: ModelServer, client: openai.OpenAI) -> None:
    streams = [
        client.completions.create(model="tiny", prompt="Tom", max_tokens=40, seed=seed, stream=True)
        for seed in range(6)  # more than the server's four
    ]
    texts = ["".join(chunk.choices[0].text for chunk in stream) for stream in streams]
    assert texts == [text_of_engine("Tom", 40, seed) for seed in range(6)]
    server.wait_for(lambda: server.figure("smallgpt_active_streams") == 0)

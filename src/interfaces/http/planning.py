"""From a body to what the engine is asked for: token ids, bounds, settings and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import randbelow

from smallgpt.application.streams import Request
from smallgpt.domain.errors import DataError
from smallgpt.domain.sampling import Sampling
from smallgpt.infrastructure.tokenizers import AnyTokenizer
from smallgpt.interfaces.http.bodies import ChatBody, CompletionBody
from smallgpt.interfaces.http.errors import ApiError
from smallgpt.interfaces.http.limits import DEFAULT_TOKENS, ENTRIES, PROMPT_BLOCKS, SEQUENCES, Limits

SMALLEST_TOP_P = 1e-6
"""A smaller one is zero in float32, and would leave no token at all."""


@dataclass(frozen=True)
class Served:
    """The model that a server offers."""

    name: str
    tokenizer: AnyTokenizer
    block_size: int


@dataclass(frozen=True)
class Plan:
    """The sequences of a request: prompt by prompt, n each."""

    requests: list[Request]
    echoes: list[str]
    """The text that each answer begins with."""


def plan_completion(body: CompletionBody, served: Served, limits: Limits) -> Plan:
    """The sequences of a completion. Raises ApiError."""
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "echo with logprobs: a prompt's own are not computed; leave one of them out", param="echo")
    prompts = [_ids(prompt, served) for prompt in _prompts(body)]
    requests = _requests(body, prompts, body.max_tokens, body.logprobs, served, limits)
    echoes = [served.tokenizer.decode(request.prompt) if body.echo else "" for request in requests]
    return Plan(requests, echoes)


def plan_chat(body: ChatBody, served: Served, limits: Limits) -> Plan:
    """The sequences of a chat completion: the messages, whoever's, are one beginning. Raises ApiError."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(
            400, f"top_logprobs is {body.top_logprobs} without logprobs; set logprobs to true", param="top_logprobs"
        )
    alternatives = (body.top_logprobs or 0) if body.logprobs else None
    prompt = _ids(story_of([message.text for message in body.messages]), served)
    longest = body.max_completion_tokens or body.max_tokens
    requests = _requests(body, [prompt], longest, alternatives, served, limits)
    return Plan(requests, [""] * len(requests))


def story_of(texts: Sequence[str]) -> str:
    """Texts joined as one story, by a space where neither side has a space or line end."""
    story = ""
    for text in filter(None, texts):
        joined = not story or story[-1].isspace() or text[0].isspace()
        story += text if joined else f" {text}"
    return story


def _prompts(body: CompletionBody) -> list[str] | list[list[int]]:
    prompt = body.prompt if body.prompt is not None else ""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


def _ids(prompt: str | list[int], served: Served) -> list[int]:
    ids = _encoded(prompt, served) if isinstance(prompt, str) else prompt
    vocab_size, longest = served.tokenizer.vocab_size, PROMPT_BLOCKS * served.block_size
    if not ids:
        if served.tokenizer.end_of_text is None:
            raise ApiError(400, "the prompt is empty; this model needs at least one character", param="prompt")
        return [served.tokenizer.end_of_text]
    if max(ids) >= vocab_size:
        words = f"token id {max(ids)} is not in the vocabulary of {vocab_size} ids; use this model's tokenizer"
        raise ApiError(400, words, param="prompt")
    if len(ids) > longest:
        words = f"the prompt has {len(ids)} tokens; at most {longest}, of which the last {served.block_size} are read"
        raise ApiError(400, words, param="prompt", code="context_length_exceeded")
    return ids


def _encoded(prompt: str, served: Served) -> list[int]:
    try:
        return served.tokenizer.encode(prompt)
    except DataError as error:
        raise ApiError(400, str(error), param="prompt") from None


def _requests(
    body: CompletionBody | ChatBody,
    prompts: Sequence[list[int]],
    longest: int | None,
    alternatives: int | None,
    served: Served,
    limits: Limits,
) -> list[Request]:
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options is for streams; set stream to true", param="stream_options")
    n = body.n or 1
    most = min(SEQUENCES, limits.queue)
    if n * len(prompts) > most:
        raise ApiError(400, f"{len(prompts)} prompts times n = {n} are too many; at most {most} together", param="n")
    if longest is not None and longest > limits.max_new_tokens:
        words = f"max_tokens is {longest}; this server gives at most {limits.max_new_tokens}"
        raise ApiError(400, words, param="max_tokens")
    longest = longest or min(DEFAULT_TOKENS, limits.max_new_tokens)
    entries = n * len(prompts) * longest * (1 + (alternatives or 0))
    if entries > ENTRIES:
        words = (
            f"prompts times n times max_tokens times (1 + likeliest tokens) is {entries}; it must be at most {ENTRIES}"
        )
        raise ApiError(400, words, param="max_tokens")
    shortest = body.min_tokens or 0
    if shortest > longest:
        words = f"min_tokens is {shortest}; it must be at most max_tokens, {longest}"
        raise ApiError(400, words, param="min_tokens")
    seed = randbelow(2**31) if body.seed is None else body.seed
    sampling = _sampling(body, served)
    end = served.tokenizer.end_of_text
    return [
        Request(ids, longest, sampling, seed + index, end, shortest, alternatives)
        for ids in prompts
        for index in range(n)
    ]


def _sampling(body: CompletionBody | ChatBody, served: Served) -> Sampling:
    return Sampling(
        1.0 if body.temperature is None else body.temperature,
        body.top_k,
        None if body.top_p is None else max(body.top_p, SMALLEST_TOP_P),
        body.min_p,
        1.0 if body.repetition_penalty is None else body.repetition_penalty,
        served.tokenizer.vocab_size,
    )

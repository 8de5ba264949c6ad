"""The bodies of requests: strict JSON, then strict fields, so that a mistake is told and not guessed around."""

import json
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smallgpt.interfaces.http.errors import ApiError
from smallgpt.interfaces.http.limits import CHOICES, LOGPROBS, PROMPTS, STOP_CHARACTERS, STOPS

TOKENS_IN_JSON = 1 << 19
FIELDS = 100
"""Of an object; no request needs a third of them."""
Id = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[Id], Field(fail_fast=True, min_length=1, max_length=TOKENS_IN_JSON)]
Stop = Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]
Zero = Annotated[float, Field(ge=0, le=0)]
UNSUPPORTED = {
    "presence_penalty": "not supported; leave it out, or give repetition_penalty",
    "frequency_penalty": "not supported; leave it out, or give repetition_penalty",
    "logit_bias": "not supported; leave it out",
}
"""Fields of OpenAI's that are taken with the value that changes nothing alone."""
PROMPT_WORDS = "a string, a list of strings, a list of token ids, or a list of such lists"


class StreamOptions(BaseModel):
    """What a stream also says."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = Field(None, description="A last chunk, without choices, with the counts of tokens.")
    include_obfuscation: bool | None = Field(None, description="Taken and ignored.")


class _Sampled(BaseModel):
    """What completions and chat completions share."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = Field(None, max_length=200, description="The id that /v1/models gives; it may be left out.")
    n: int | None = Field(None, ge=1, le=CHOICES, description="Continuations of each prompt; the i-th uses seed + i.")
    max_tokens: int | None = Field(None, ge=1, description="At most as many tokens as the server allows; default 200.")
    min_tokens: int | None = Field(None, ge=0, description="The text does not end by itself before as many.")
    temperature: float | None = Field(
        None, ge=0, le=100, allow_inf_nan=False, description="0 takes the likeliest token; default 1."
    )
    top_p: float | None = Field(None, gt=0, le=1, description="The likeliest tokens that together reach it.")
    top_k: int | None = Field(None, ge=1, description="The k likeliest tokens.")
    min_p: float | None = Field(None, ge=0, le=1, description="Tokens at least so likely relative to the likeliest.")
    repetition_penalty: float | None = Field(
        None, ge=0.1, le=10, allow_inf_nan=False, description="Above 1 makes tokens that occurred less likely."
    )
    seed: int | None = Field(None, ge=0, lt=2**62, description="Makes the text repeatable.")
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=STOPS)] | None = Field(
        None, description="The text ends before the first of these."
    )
    stream: bool | None = Field(None, description="Server-sent events, a chunk for each token.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    user: str | None = Field(None, max_length=1000, description="Taken and ignored.")
    presence_penalty: Zero | None = Field(None, description="Only 0: see repetition_penalty.")
    frequency_penalty: Zero | None = Field(None, description="Only 0: see repetition_penalty.")
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = Field(None, description="Only empty.")

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionBody(_Sampled):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=PROMPTS)]
        | Ids
        | Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=PROMPTS)]
        | None
    ) = Field(None, description=f"The beginning of the text: {PROMPT_WORDS}.")
    logprobs: int | None = Field(
        None, ge=0, le=LOGPROBS, description="Log-probabilities of so many likeliest tokens, and the chosen one's."
    )
    echo: bool | None = Field(None, description="The text begins with the prompt; not together with logprobs.")
    best_of: Annotated[int, Field(ge=1, le=1)] | None = Field(None, description="Only 1.")
    suffix: Literal[""] | None = Field(None, description="Only empty.")


class Part(BaseModel):
    """A part of a message; only text is understood."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message, whose text is a part of the story."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True, max_length=100)] | None
    name: str | None = Field(None, max_length=200)

    @property
    def text(self) -> str:
        """Its parts together."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])


class ChatBody(_Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=1000)] = Field(
        description="Their texts, joined by spaces, are the beginning of the story that is continued."
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the tokens chosen.")
    top_logprobs: int | None = Field(None, ge=0, le=LOGPROBS, description="And of so many likeliest; with logprobs.")


Body = TypeVar("Body", CompletionBody, ChatBody)


def parse(kind: type[Body], body: bytes) -> Body:
    """A body of that kind. Raises ApiError 400 that names the field, its value and what it must be."""
    data = _read_json(body)
    if not isinstance(data, dict):
        raise ApiError(400, f"the body is {_short(data)}; it must be a JSON object")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _mistake(kind, error) from None


def _read_json(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_checked)
    except UnicodeDecodeError as error:
        words = f"byte {error.start} of the body is not UTF-8; send JSON in UTF-8"
    except RecursionError:
        words = "the body is nested too deeply; no field needs more than a few levels"
    except ValueError as error:  # a JSONDecodeError, or a number of thousands of digits
        words = f"the body is not JSON: {str(error)[:200]}"
    raise ApiError(400, words, code="invalid_json")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the field {_short(name)} is there twice")
        found[name] = value
    if len(found) > FIELDS:  # each would be a mistake of its own
        raise ApiError(400, f"the body has an object of {len(found)} fields; at most {FIELDS}", code="invalid_json")
    return found


def _mistake(kind: type[BaseModel], error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    names = [str(part) for part in first["loc"]]
    name = names[0] if names else "body"
    if first["type"] == "extra_forbidden" and len(names) == 1:
        close = get_close_matches(name, kind.model_fields, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; /docs lists the fields"
        return ApiError(400, f"{_short(name)} is not a field of this request{hint}", param=name[:100])
    if name == "prompt" and len(error.errors()) > 1:
        return ApiError(
            400,
            f"prompt must be {PROMPT_WORDS}, none of them empty and at most {PROMPTS} of them",
            param="prompt",
        )
    if name == "stop" and len(error.errors()) > 1:
        words = f"stop must be a string, or at most {STOPS} of them, of 1 to {STOP_CHARACTERS} characters each"
        return ApiError(400, words, param="stop")
    value = "missing" if first["type"] == "missing" else _short(first["input"])
    words = UNSUPPORTED.get(name, first["msg"])
    return ApiError(400, f"{'.'.join(names)[:100]} is {value}: {words}", param=name[:100])


def _short(value: Any) -> str:
    """A value as ASCII JSON, cut where it is long."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    words = json.dumps(value)
    return words if len(words) <= 60 else f"{words[:60]}..."

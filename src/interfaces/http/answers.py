r"""The JSON of answers, as OpenAI's clients read it. A streamed completion is server-sent events, one chunk a token:

    data: {"id": "cmpl-...", "object": "text_completion", "created": 1700000000, "model": "demo", "choices": [
      {"index": 0, "text": " kite", "logprobs": {"tokens": [" kite"], "token_logprobs": [-0.5],
       "top_logprobs": [{" kite": -0.5, " dog": -1.2}], "text_offset": [12]}, "finish_reason": null}]}

and at the end `data: [DONE]`. "logprobs" is null when none were asked for. "text" may be empty: inside an unfinished
character, or while it may be the beginning of a stop string; the token's log-probabilities come all the same. A token is
named by its text or, where that is not whole UTF-8, by its bytes: "bytes:\xf0\x9f", in hex throughout; parts of characters
would look alike otherwise. With "logprobs" of N from 1 on, "top_logprobs" has N or, with the chosen token where it is none of
the likeliest, N + 1. "text_offset" counts characters of the continuation. The last chunk of a choice has "finish_reason"
"stop" (the text ended, or a stop string came) or "length"; it may hold no token. An error after the beginning is
`data: {"error": {...}}`, and the stream ends there.

In a chat a token has its text, with U+FFFD for what is no UTF-8, and its bytes beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from json import dumps
from secrets import token_hex
from time import time
from typing import Any

from smallgpt.application.streams import Token
from smallgpt.infrastructure.tokenizers import AnyTokenizer, StreamDecoder
from smallgpt.interfaces.http.tickets import Finish, Piece

DONE = b"data: [DONE]\n\n"
Json = dict[str, Any]


def event(data: Json) -> bytes:
    """One server-sent event."""
    return f"data: {dumps(data, separators=(',', ':'))}\n\n".encode()


@dataclass
class Choice:
    """What has come of one sequence."""

    offset: StreamDecoder
    characters: int = 0
    texts: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    n_tokens: int = 0
    finish: Finish | None = None


class Answer:
    """The pieces of a request, made into chunks or into one object. Subclasses say which form they take."""

    kind = chunk_kind = prefix = ""

    def __init__(
        self, model: str, tokenizer: AnyTokenizer, prompts: Sequence[Sequence[int]], echoes: Sequence[str]
    ) -> None:
        """prompts are the token ids of each choice, echoes the text that each begins with."""
        self.id, self.created, self.model = f"{self.prefix}-{token_hex(12)}", int(time()), model
        self._tokenizer, self._echoes = tokenizer, echoes
        self._prompt_tokens = sum(map(len, {id(prompt): prompt for prompt in prompts}.values()))
        self._choices = [Choice(StreamDecoder(tokenizer)) for _ in prompts]
        self._open = len(self._choices)

    @property
    def is_complete(self) -> bool:
        """Has every choice ended?"""
        return not self._open

    @property
    def n_tokens(self) -> int:
        """Tokens generated so far."""
        return sum(choice.n_tokens for choice in self._choices)

    @property
    def usage(self) -> Json:
        """Counts of tokens; a prompt continued n times counts once."""
        counts = {"prompt_tokens": self._prompt_tokens, "completion_tokens": self.n_tokens}
        return {**counts, "total_tokens": sum(counts.values())}

    def add(self, piece: Piece) -> Json | None:
        """Keep a piece's log-probabilities and end; returns those of its token."""
        choice = self._choices[piece.index]
        if piece.finish:
            choice.finish = piece.finish
            self._open -= 1
        if piece.token is None:
            return None
        choice.n_tokens += 1
        if piece.token.logprob is None:
            return None
        logprobs = self._token_logprobs(piece.token, choice)
        choice.characters += len(choice.offset.feed(piece.token.id))
        return logprobs

    def keep(self, piece: Piece) -> None:
        """Keep a piece for the whole object."""
        choice = self._choices[piece.index]
        logprobs = self.add(piece)
        choice.texts.append(piece.text)
        if logprobs is not None:
            choice.logprobs.append(logprobs)

    def beginning(self) -> list[Json]:
        """The chunks before any token."""
        raise NotImplementedError

    def chunk(self, piece: Piece) -> Json:
        """A piece as a chunk."""
        logprobs = self.add(piece)
        content = self._chunk_content(piece.text)
        return self._chunk(piece.index, content, self._merge([logprobs] if logprobs else []), piece.finish)

    def whole(self) -> Json:
        """Everything kept, as one object."""
        choices = [
            {
                "index": index,
                **self._content(self._echoes[index] + "".join(choice.texts)),
                "logprobs": self._merge(choice.logprobs),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(self._choices)
        ]
        return {**self._head(self.kind), "choices": choices, "usage": self.usage}

    def usage_chunk(self) -> Json:
        """The chunk of stream_options.include_usage."""
        return {**self._head(self.chunk_kind), "choices": [], "usage": self.usage}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, index: int, content: Json, logprobs: Json | None, finish: Finish | None) -> Json:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head(self.chunk_kind), "choices": [choice]}

    def _content(self, text: str) -> Json:
        raise NotImplementedError

    def _chunk_content(self, text: str) -> Json:
        raise NotImplementedError

    def _token_logprobs(self, token: Token, choice: Choice) -> Json:
        raise NotImplementedError

    def _merge(self, logprobs: list[Json]) -> Json | None:
        raise NotImplementedError


class CompletionAnswer(Answer):
    """Of /v1/completions."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def beginning(self) -> list[Json]:
        return [self._chunk(index, {"text": echo}, None, None) for index, echo in enumerate(self._echoes) if echo]

    def _content(self, text: str) -> Json:
        return {"text": text}

    _chunk_content = _content

    def _token_logprobs(self, token: Token, choice: Choice) -> Json:
        top = {self._name(id): logprob for id, logprob in token.alternatives}
        name = self._name(token.id)
        return {
            "tokens": name,
            "token_logprobs": token.logprob,
            "top_logprobs": {**top, name: token.logprob} if top else top,
            "text_offset": choice.characters,
        }

    def _name(self, id: int) -> str:
        data = self._tokenizer.decode_bytes([id])
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _merge(self, logprobs: list[Json]) -> Json | None:
        return {name: [one[name] for one in logprobs] for name in logprobs[0]} if logprobs else None


class ChatAnswer(Answer):
    """Of /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def beginning(self) -> list[Json]:
        first = {"delta": {"role": "assistant", "content": ""}}
        return [self._chunk(index, first, None, None) for index in range(len(self._choices))]

    def _content(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _chunk_content(self, text: str) -> Json:
        return {"delta": {"content": text}}

    def _token_logprobs(self, token: Token, choice: Choice) -> Json:
        top = [self._entry(id, logprob) for id, logprob in token.alternatives]
        return {**self._entry(token.id, token.logprob), "top_logprobs": top}

    def _entry(self, id: int, logprob: float | None) -> Json:
        return {
            "token": self._tokenizer.decode([id]),
            "logprob": logprob,
            "bytes": list(self._tokenizer.decode_bytes([id])),
        }

    def _merge(self, logprobs: list[Json]) -> Json | None:
        return {"content": logprobs, "refusal": None} if logprobs else None

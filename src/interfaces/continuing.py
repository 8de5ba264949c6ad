"""Prompts in, continuations as text out, piece by piece: what `generate` and `chat` share."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from smallgpt.application.engine import Engine, PastBlock
from smallgpt.application.streams import Request, Stream, Token
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.domain.sampling import Sampling
from smallgpt.infrastructure.text_stream import TextStream
from smallgpt.infrastructure.tokenizers import AnyTokenizer
from smallgpt.interfaces.opening import OpenedModel

AT_ONCE = 16
"""Texts that are continued together where there are many: more would take more memory for little more speed."""


@dataclass(frozen=True)
class Settings:
    """How to continue. Raises ConfigError for what cannot be."""

    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 200
    min_new_tokens: int = 0
    stops: tuple[str, ...] = ()
    """A continuation ends before the first of these texts."""
    logprobs: int | None = None
    """With a number, log-probabilities: of each token, and of so many of the likeliest."""

    def __post_init__(self) -> None:
        if "" in self.stops:
            raise ConfigError("a stop text is empty; give at least one character")
        if self.logprobs is not None and self.logprobs < 0:
            raise ConfigError(f"logprobs is {self.logprobs}; it must be 0 or more")
        self.request([0], seed=0)  # raises what the engine's own ranges refuse

    def request(self, ids: Sequence[int], seed: int, end: int | None = None, n_tokens: int | None = None) -> Request:
        """What the engine is asked for; ids from n_tokens on are padding."""
        sampling = replace(self.sampling, n_tokens=n_tokens)
        return Request(ids, self.max_new_tokens, sampling, seed, end, self.min_new_tokens, self.logprobs)


@dataclass(eq=False)
class Continuation:
    """A prompt, and what follows it so far."""

    prompt: str
    seed: int
    text: str = ""
    """What may be shown of the continuation."""
    tokens: list[Token] = field(default_factory=list)
    """All that were chosen, those of a stop text too."""
    end: Literal["end-of-text", "length", "stop", "interrupted"] | None = None
    """Why it ended, once it has."""
    guesses: int | None = None
    """Where tokens are guessed, how many were."""
    right_guesses: int = 0

    def as_dict(self, tokenizer: AnyTokenizer) -> dict[str, Any]:
        """For a program to read; `text` is prompt and continuation together."""
        facts = {
            "prompt": self.prompt,
            "text": self.prompt + self.text,
            "tokens": len(self.tokens),
            "end": self.end,
            "seed": self.seed,
            **({} if self.guesses is None else {"guesses": self.guesses, "right_guesses": self.right_guesses}),
        }
        if not any(token.logprob is not None for token in self.tokens):
            return facts

        def named(id: int, logprob: float | None) -> dict[str, Any]:
            return {"id": id, "token": tokenizer.decode([id]), "logprob": logprob}

        top = [[named(*likely) for likely in token.alternatives] for token in self.tokens]
        logprobs = [named(token.id, token.logprob) for token in self.tokens]
        return {**facts, "logprobs": [{**own, "top": best} for own, best in zip(logprobs, top, strict=True)]}


class Continuer:
    """Continues texts with one model, up to n_streams of them in each step."""

    def __init__(
        self, opened: OpenedModel, n_streams: int = 1, *, past_block: PastBlock = "slide", n_draft: int = 0
    ) -> None:
        """Raises CheckpointError for a model without a tokenizer, and ConfigError."""
        if opened.tokenizer is None:
            raise CheckpointError(f"{opened.path} has no tokenizer.json, so its tokens cannot be shown as text")
        self.tokenizer = opened.tokenizer
        self.engine = Engine(opened.model, n_streams, past_block=past_block, n_draft=n_draft)

    def run(
        self, texts: Sequence[Continuation], settings: Settings, should_stop: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[Continuation, str], None, None]:
        """Continue the texts, each the same as it would be alone; yields the one that grew and the piece that it grew by.

        When should_stop says so, those that have begun end as they are. Raises ConfigError, NumericsError.
        """
        waiting = deque(texts)
        going: dict[Stream, tuple[Continuation, TextStream]] = {}
        try:
            while (waiting or going) and not should_stop():
                while waiting and self.engine.n_free:
                    text = waiting.popleft()
                    going[self.engine.add(self._request(text, settings))] = (
                        text,
                        TextStream(self.tokenizer, settings.stops),
                    )
                for stream, tokens in self.engine.step():
                    text, decoder = going[stream]
                    yield text, self._grow(text, decoder, stream, tokens)
                    if text.end:
                        del going[stream]
                        self.engine.remove(stream)  # a stop text ends what the engine would go on with
            for text, decoder in going.values():
                text.end = "interrupted"
                yield text, _add(text, decoder.flush())
        finally:
            for stream in going:
                self.engine.remove(stream)

    def _request(self, text: Continuation, settings: Settings) -> Request:
        end = self.tokenizer.end_of_text
        ids = self.tokenizer.encode(text.prompt) or ([] if end is None else [end])
        if not ids:
            raise ConfigError("this tokenizer has no end-of-text token to start from; give some text to continue")
        return settings.request(ids, text.seed, end, self.tokenizer.vocab_size)

    def _grow(self, text: Continuation, decoder: TextStream, stream: Stream, tokens: list[Token]) -> str:
        """Add the tokens of a step to the text, up to a stop, and what is left when they are the last -> the piece added."""
        piece = ""
        for token in tokens:
            text.tokens.append(token)
            piece += decoder.feed(token.id)
            if decoder.stop:
                break
        if self.engine.n_draft:
            text.guesses, text.right_guesses = stream.guesses, stream.right_guesses
        if stream.finish and not decoder.stop:
            piece += decoder.flush()
        if decoder.stop:
            text.end = "stop"
        elif stream.finish:
            text.end = "end-of-text" if stream.finish == "end" else "length"
        return _add(text, piece)


def _add(text: Continuation, piece: str) -> str:
    text.text += piece
    return piece

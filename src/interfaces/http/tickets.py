"""A client's request as the worker sees it: some sequences, and the pieces of text that they are given."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from smallgpt.application.streams import Request, Token
from smallgpt.infrastructure.text_stream import TextStream
from smallgpt.infrastructure.tokenizers import AnyTokenizer
from smallgpt.interfaces.http.errors import ApiError

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What a step gave a sequence."""

    index: int
    """Of the sequence in its request."""
    text: str
    """What may be shown by now; empty inside a character or a possible stop string."""
    token: Token | None
    """None where the sequence ends without another."""
    finish: Finish | None = None


class Ticket:
    """A client's request: some sequences, and the queue through which their pieces come."""

    def __init__(self, client: str, requests: Sequence[Request], stops: Sequence[str], tokenizer: AnyTokenizer) -> None:
        self.client = client
        self.events: asyncio.Queue[Piece | ApiError] = asyncio.Queue()
        self.is_dropped = False
        """Have too many pieces not been fetched, so that no more are kept?"""
        self.jobs = [Job(self, index, request, TextStream(tokenizer, stops)) for index, request in enumerate(requests)]

    @property
    def has_tokens(self) -> bool:
        """Has any of its sequences been given one?"""
        return any(job.n_tokens for job in self.jobs)


class Job:
    """One sequence of a ticket."""

    def __init__(self, ticket: Ticket, index: int, request: Request, text: TextStream) -> None:
        self.ticket, self.index, self.request, self.text = ticket, index, request, text
        self.arrived = self.last = monotonic()
        self.n_tokens = 0

    def pieces(self, tokens: Sequence[Token], finish: str | None) -> list[Piece]:
        """The step's tokens as pieces, up to a stop string; the last one says how the sequence ended, if it has."""
        made: list[Piece] = []
        for token in tokens:
            self.n_tokens += 1
            made.append(Piece(self.index, self.text.feed(token.id), token))
            if self.text.stop:
                break
        if self.text.stop:
            made[-1] = Piece(self.index, made[-1].text, made[-1].token, "stop")
        elif finish == "end":
            made.append(self.ending("stop"))
        elif finish == "length":
            made[-1] = Piece(self.index, made[-1].text + self.text.flush(), made[-1].token, "length")
        return made

    def ending(self, finish: Finish) -> Piece:
        """The end without another token."""
        return Piece(self.index, self.text.flush(), None, finish)

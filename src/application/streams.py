"""A sequence that the engine continues: what is asked for, how far it has come, and what it is given."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from smallgpt.domain.errors import ConfigError
from smallgpt.domain.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """A text to continue, as token ids, and how. Raises ConfigError for what cannot be."""

    prompt: Sequence[int]
    """At least one id."""
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    """The same seed gives the same tokens, whatever else draws random numbers."""
    end: int | None = None
    """The id that ends the text. It is not given out."""
    min_new_tokens: int = 0
    """`end` is not chosen before as many."""
    alternatives: int | None = None
    """With a number, log-probabilities: of each token chosen, and of so many of the likeliest."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ConfigError("the prompt has no tokens; give at least one, such as end-of-text")
        for name in ("max_new_tokens", "min_new_tokens", "seed"):
            if type(getattr(self, name)) is not int:
                words = name.replace("_", "-")
                raise ConfigError(f"{words} is {getattr(self, name)!r}; it must be a whole number")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max-new-tokens is {self.max_new_tokens}; it must be 1 or more")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError(
                f"min-new-tokens is {self.min_new_tokens}; it must be between 0 and max-new-tokens, {self.max_new_tokens}"
            )


@dataclass(frozen=True)
class Token:
    """One token of a continuation."""

    id: int
    logprob: float | None = None
    """Natural logarithm of the model's own probability of it, before temperature and filters."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The likeliest ids and their log-probabilities, likeliest first."""


class Stream:
    """A sequence that an Engine continues."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.finish: Literal["end", "length"] | None = None
        """Why it ended, once it has."""
        self.ids = list(request.prompt)
        self.start = 0  # where the context that the cache holds begins in ids
        self.read = 0  # how many tokens of it the cache holds
        self.passes = 0
        """Times that the model was run for it: fewer than n_new where guesses were right."""
        self.guesses = 0
        """Tokens that were guessed."""
        self.right_guesses = 0
        """Those of them that saved a pass: n_new = passes + right_guesses, where no `end` was drawn."""
        self.generator = torch.Generator().manual_seed(request.seed)

    @property
    def n_new(self) -> int:
        """Tokens continued so far."""
        return len(self.ids) - len(self.request.prompt)

    @property
    def unread(self) -> list[int]:
        """The tokens of the context that the cache does not hold yet."""
        return self.ids[self.start + self.read :]

"""How much a server gives to anybody."""

from dataclasses import dataclass

from smallgpt.domain.errors import ConfigError

BODY_BYTES = 1 << 20
"""Of a request."""
BODY_SECONDS = 10.0
"""In which the whole body must have come."""
HEADER_SECONDS = 10.0
"""In which a request line and its headers must have come, also on a connection that is kept open."""
CONNECTIONS = 900
"""At once; below the 1,024 files that a process may usually have open."""
PROMPTS = 16
"""In one request."""
CHOICES = 16
"""Of one prompt: `n`."""
SEQUENCES = 32
"""In one request: prompts times n."""
PROMPT_BLOCKS = 16
"""A prompt may have as many times the model's block; it reads the last block of them."""
STOPS = 16
STOP_CHARACTERS = 256
LOGPROBS = 20
ENTRIES = 1 << 18
"""In one request: sequences times max_tokens times (1 + the likeliest tokens asked for); what its answer needs memory for."""
UNFETCHED = 4096
"""Pieces of a stream that wait for its client to read."""
DEFAULT_TOKENS = 200
"""When a request does not say how many."""


@dataclass(frozen=True)
class Limits:
    """What `smallgpt serve`'s flags set. Raises ConfigError."""

    streams: int = 16
    """Sequences continued at once."""
    queue: int = 64
    """Sequences that may wait for a stream."""
    max_new_tokens: int = 2048
    """Of one sequence."""
    timeout: float = 120.0
    """Seconds from a request's arrival to the end of its answer."""
    grace: float = 10.0
    """Seconds for what is being written when the server is told to stop."""
    body_seconds: float = BODY_SECONDS
    header_seconds: float = HEADER_SECONDS

    def __post_init__(self) -> None:
        for name in ("streams", "queue", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name.replace('_', '-')} is {getattr(self, name)}; it must be 1 or more")
        if not 0 < self.timeout <= 86400:
            raise ConfigError(f"timeout is {self.timeout}; it must be above 0 and at most a day, 86400 seconds")
        if not 0 <= self.grace <= 3600:
            raise ConfigError(f"grace is {self.grace}; it must be between 0 and 3600 seconds")

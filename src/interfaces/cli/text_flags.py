"""Flags that `generate` and `chat` share: how to choose tokens, and what computes them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces.cli.flags import Whole

if TYPE_CHECKING:
    from smallgpt.interfaces.continuing import Settings
    from smallgpt.interfaces.opening import OpenedModel

END_OF_SEEDS = 2**63
"""Seeds are below it, those of all samples too."""


@Parameter(name="*")
@dataclass(frozen=True)
class TextFlags:
    """How tokens are chosen, and when a text ends."""

    max_new_tokens: Whole = 200
    """Longest continuation, in tokens."""
    min_new_tokens: Whole = 0
    """The end of the text is not chosen before so many tokens; a stop text still ends it."""
    stop: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", show_default=False)] = ()
    """End before the first of these texts."""
    temperature: float = 0.8
    """Below 1 bolder in what is likely, above 1 more varied; 0 takes the most likely token."""
    top_k: Whole | None = None
    """Choose among the k most likely tokens."""
    top_p: float | None = None
    """Choose among the most likely tokens that together reach this probability."""
    min_p: float | None = None
    """Choose among tokens at least this many times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that occurred less likely."""

    def settings(self, logprobs: int | None = None) -> "Settings":
        """Raises ConfigError for a value out of range."""
        from smallgpt.domain.sampling import Sampling
        from smallgpt.interfaces.continuing import Settings

        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
        return Settings(sampling, self.max_new_tokens, self.min_new_tokens, self.stop, logprobs)


@Parameter(name="*")
@dataclass(frozen=True)
class EngineFlags:
    """What computes the tokens."""

    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Fewer bits are faster, and not quite the same model."""
    past_block: Literal["slide", "refill"] = "slide"
    """Past the block: slide computes the last block anew for each token, refill keeps half of it and goes on, sooner."""
    lookup: Whole = 0
    """Guess so many tokens from what stands earlier in the text, and check them at once; float32's tokens stay the same."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    kernels: Literal["torch", "auto", "triton", "reference"] | None = None
    """Which implementation computes attention, and on a GPU layer norm: torch on a CPU and auto on a GPU when not given."""

    def __post_init__(self) -> None:
        if self.lookup < 0:
            raise ConfigError(f"lookup is {self.lookup}; it must be 0 or more")

    def open(self, run: Path | str) -> "OpenedModel":
        """The model, ready for text; what weights in fewer bits cost is said on stderr."""
        from smallgpt.interfaces.cli.progress import model_fetched
        from smallgpt.interfaces.packed_weights import open_for_generation

        return open_for_generation(
            model_fetched(run), self.device, self.kernels, self.weights, lambda words: print(words, file=sys.stderr)
        )


def first_seed(seed: int | None, texts: int = 1) -> int:
    """The seed given, or any; raises ConfigError when it, or one of the `texts` that count on from it, is out of range."""
    from secrets import randbelow

    if seed is None:
        return randbelow(2**31)
    if not 0 <= seed <= END_OF_SEEDS - texts:
        several = f", for {texts} samples with seeds from there on" if texts > 1 else ""
        raise ConfigError(f"seed is {seed}; it must be between 0 and 2^63 - {texts}{several}")
    return seed

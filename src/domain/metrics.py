"""Numbers that say how good: bits per byte with its interval."""

from dataclasses import dataclass
from math import exp, log, sqrt


@dataclass(frozen=True)
class Score:
    """A model's cross-entropy on a text. Smoothing never enters it."""

    nats: float
    """Summed over every predicted token, end-of-text included."""
    tokens: int
    """Predicted tokens."""
    text_bytes: int | None
    """UTF-8 bytes of the text without document separators; None when unknown (adopted token files)."""
    block_variance: float = 0.0
    """Variance of a block's summed nats, for the interval."""
    blocks: int = 1

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """nats ÷ ln 2 ÷ bytes: comparable between tokenizers."""
        return None if not self.text_bytes else self.nats / log(2) / self.text_bytes

    @property
    def bits_per_byte_interval(self) -> tuple[float, float] | None:
        """95 % interval: blocks taken as independent, so the sum's standard error is √(blocks · variance).

        None when the bytes are unknown, and for a single block, which has no spread.
        """
        if self.bits_per_byte is None or not self.text_bytes or self.blocks < 2:
            return None
        half = 1.96 * sqrt(self.blocks * self.block_variance) / log(2) / self.text_bytes
        return self.bits_per_byte - half, self.bits_per_byte + half

    def as_dict(self) -> dict[str, float | int | list[float] | None]:
        """What `--json` and metrics.jsonl show."""
        interval = self.bits_per_byte_interval
        return {
            "nats_per_token": self.nats_per_token,
            "bits_per_byte": self.bits_per_byte,
            "bits_per_byte_interval": None if interval is None else list(interval),
            "perplexity": self.perplexity,
            "tokens": self.tokens,
            "bytes": self.text_bytes,
        }

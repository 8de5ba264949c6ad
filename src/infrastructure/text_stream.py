"""A continuation as text: whole characters only, ended by the first of some strings."""

from collections.abc import Sequence

from smallgpt.infrastructure.tokenizers import AnyTokenizer, StreamDecoder


class TextStream:
    """Turns ids into text that may be shown at once.

    Held back are the bytes of an unfinished character and what may be the beginning of a stop string.
    """

    def __init__(self, tokenizer: AnyTokenizer, stops: Sequence[str] = ()) -> None:
        """`stops` are not empty. The text ends before the one that is complete first, of several the longest."""
        self._decoder, self._stops = StreamDecoder(tokenizer), tuple(stops)
        self._held = ""
        self.stop: str | None = None
        """The stop string that ended the text, once one has."""

    def feed(self, token: int) -> str:
        """The text that this id makes certain; often none. After a stop string, always none."""
        return self._release(self._decoder.feed(token))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, and what was held back."""
        text = self._release(self._decoder.flush())
        rest, self._held = self._held, ""
        return text if self.stop else text + rest

    def _release(self, piece: str) -> str:
        if self.stop or not piece:
            return ""
        text = self._held + piece
        found = [(text.index(stop), stop) for stop in self._stops if stop in text]
        if found:  # by their ends, so that the text does not depend on how it was cut into tokens
            start, self.stop = min(found, key=lambda at: (at[0] + len(at[1]), at[0]))
            self._held = ""
            return text[:start]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of text that begins stop."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

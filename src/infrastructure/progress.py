"""How long work says how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Told as work goes on."""

    def __call__(self, done: int, total: int | None, what: str, details: str = "") -> None:
        """So much of `total` (None: unknown) is done of `what`; details, such as speeds, instead of the bare numbers."""

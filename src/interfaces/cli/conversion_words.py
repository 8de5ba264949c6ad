"""A conversion's proof, for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from smallgpt.application.parity import Parity
    from smallgpt.interfaces.converting import Conversion


def conversion_words(conversion: "Conversion") -> str:
    """Where it is, and how it was proved."""
    lines = [
        f"written     {conversion.out} ({conversion.format})",
        f"compared    with {conversion.reader}, on {conversion.parity.positions:,} positions",
        f"logits      {_near(conversion.parity)}",
        f"greedy      {conversion.parity.greedy_equal} of {conversion.parity.greedy_tokens} tokens are equal",
    ]
    if conversion.parity.dtype == "float64":
        lines.append(
            "            in float64: this model's logits are so large that float32 rounds by more than is allowed"
        )
    if conversion.exact:
        lines.append("weights     equal to the bit")
    change = conversion.change
    if change is not None:
        lines.append(
            f"change      {_near(change)}; {change.greedy_equal} greedy tokens before the first that differs"
            if change.greedy_equal < change.greedy_tokens
            else f"change      {_near(change)}; the greedy tokens stay the same"
        )
    lines += [f"note        {note}" for note in conversion.notes]
    return "\n".join(lines)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say on a terminal what takes its time."""
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    with console.status(what):
        yield


def _near(parity: "Parity") -> str:
    return f"at most {parity.max_difference:.2g} apart, {parity.relative:.2g} of the largest"

"""Systems measured in turn, so that a machine that slows down slows all of them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from smallgpt.domain.errors import ConfigError, HardwareError

T = TypeVar("T")


def known(wanted: Sequence[str], systems: Sequence[str]) -> None:
    """Raise ConfigError for a name that is none of systems."""
    for name in wanted:
        if name not in systems:
            raise ConfigError(f"unknown system {name!r}; use {', '.join(systems)}")


def in_turn(
    systems: Sequence[str],
    rounds: int,
    sit: Callable[[str], T],
    tell: Callable[[int, int | None, str], None],
    leave_out: Callable[[str], None] | None,
) -> list[T]:
    """Every system's sittings, one a round.

    A system that cannot run here (ConfigError, HardwareError) is told to leave_out with the reason and measured no more;
    with no leave_out, or when none is left, the error is raised.
    """
    sittings: list[T] = []
    remaining = list(systems)
    for turn in range(rounds):
        for name in tuple(remaining):
            tell(0, None, f"{name}, round {turn + 1} of {rounds}")
            try:
                sittings.append(sit(name))
            except (ConfigError, HardwareError) as error:
                remaining.remove(name)
                if leave_out is None or not remaining:
                    raise
                leave_out(f"{name} is left out: {error}")
    return sittings

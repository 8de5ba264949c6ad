"""Kinds of flags that several commands share."""

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter, Token


def whole_number(kind: type[int], tokens: Sequence[Token]) -> int:
    """An int as written: the library's own conversion would round 5.5 to 6 without a word."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from None


Whole = Annotated[int, Parameter(converter=whole_number)]
Switch = Annotated[bool, Parameter(negative="", show_default=False)]
Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]

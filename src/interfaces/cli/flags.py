"""Kinds of flags that several commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token

from smallgpt.domain.places import is_url


def whole_number(kind: type[int], tokens: Sequence[Token]) -> int:
    """An int as written: the library's own conversion would round 5.5 to 6 without a word."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from None


def path_or_url(kind: object, tokens: Sequence[Token]) -> Path | str:
    """A Path, or a URL as written: a Path of it would lose a slash."""
    word = tokens[0].value
    return word if is_url(word) else Path(word)


Whole = Annotated[int, Parameter(converter=whole_number)]
Switch = Annotated[bool, Parameter(negative="", show_default=False)]
Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]
PlaceOf = Annotated[Path | str, Parameter(converter=path_or_url)]
"""A folder of this machine, or the URL of one in a store."""

"""What the sections of a configuration have in common. Imports no torch, so `--help` stays fast."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
StepsOrShare = Annotated[float, Field(ge=0)]
Unit = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A group of settings: frozen, and strict about unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

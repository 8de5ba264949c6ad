"""Where a folder is: on this machine, or behind a URL such as s3://bucket/stories. Only names; copies.py fetches."""

import re
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_USER = re.compile(r"(?<=://)[^/\s]+@")  # a name alone may be a token
_SIGNATURE = re.compile(r"(://[^\s?]*)\?\S+")


def is_url(text: str) -> bool:
    """Is it s3://..., file://... or the like, and no path?"""
    return _URL.match(text) is not None


def without_secrets(text: str) -> str:
    """A URL, or words with URLs in them, without user:password@ and without ?what=follows."""
    return _SIGNATURE.sub(r"\1", _USER.sub("", text))


def place(value: object) -> object:
    """A text as the place it names: a URL stays a str, anything else is a Path, which would make one / of //."""
    return Path(value) if isinstance(value, str) and not is_url(value) else value


def name_of(where: Path | str) -> str:
    """The last part of a place, for what is made of it to be called after."""
    return where.name if isinstance(where, Path) else PurePosixPath(without_secrets(where)).name


def _is_url(value: str) -> str:
    if not is_url(value):
        raise ValueError(f"{value!r} is no URL; it is like s3://bucket/runs/first, or file:///mnt/disk/first")
    return value


_WITHOUT_SECRETS = PlainSerializer(lambda value: without_secrets(str(value)), return_type=str, when_used="json")

Place = Annotated[Path | str, BeforeValidator(place), _WITHOUT_SECRETS]
"""A folder of this machine (a Path) or one to be fetched (a str: its URL). What is written of it holds no password."""
Source = Annotated[str, _WITHOUT_SECRETS]
"""A path, a URL or another name of a model."""
URL = Annotated[str, AfterValidator(_is_url), _WITHOUT_SECRETS]
"""A folder behind a URL."""

"""What all ways of making a data folder share: it appears whole or not at all, and replaces data folders only."""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure import card_words
from smallgpt.infrastructure.files import check_replaceable, folder_written_whole
from smallgpt.infrastructure.manifest import FILE_NAME, SplitFacts, TokenizerFacts
from smallgpt.infrastructure.ngrams import ngram_baselines
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.tokenizers import AnyTokenizer

SMALLEST_TEXT = 100
"""Bytes; less cannot be split and learned from."""
FITTED_TOKENS = 4_000_000
"""Training tokens the n-gram baselines are counted on at most: the first ones."""
SCORED_TOKENS = 500_000
"""Validation tokens they are measured on at most: the first ones."""

Split = Literal["train", "validation"]
_TOKEN_FILES = re.compile(r"(train|validation)((-\d{5,})?\.bin|\.starts\.npy)")
_OTHER_FILES = {FILE_NAME, "tokenizer.json", card_words.FILE_NAME, card_words.PICTURE}


@contextmanager
def data_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill that becomes `out` at the end. Raises DataError when `out` is taken or the disk refuses."""
    check_target(out, overwrite)
    try:
        with folder_written_whole(out) as folder:
            yield folder
    except OSError as error:
        raise unwritable(out, error) from error


def unwritable(out: Path, error: OSError) -> DataError:
    """What to say when the disk refuses, with what was added to the error on its way: what is kept, say."""
    remedy = "choose another --out"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space or choose another --out"
    elif error.errno == errno.EMFILE:
        remedy = "raise the limit with ulimit -n"
    said = DataError(f"{out}: cannot be written ({error.strerror or error}); {remedy}")
    for note in getattr(error, "__notes__", ()):
        said.add_note(note)
    return said


def smallest_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The token files' type: 16 bits as long as every id fits."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def describe(tokenizer: AnyTokenizer) -> TokenizerFacts:
    """A tokenizer as the manifest shows it."""
    return TokenizerFacts(
        kind=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        end_of_text=tokenizer.end_of_text,
        vocab_size=tokenizer.vocab_size,
    )


def count_baselines(
    folder: Path,
    splits: dict[Split, SplitFacts],
    dtype: str,
    vocab_size: int,
    progress: Progress | None,
) -> dict[str, float]:
    """n-gram baselines of the token files in folder: tables of the first FITTED_TOKENS, on the first SCORED_TOKENS.

    Tables of more tokens would reach less: the lines are those of as many tokens as `fitted_tokens` says. Scoring a
    part costs little: on stories, whose tokens scatter by 3 nats and resemble their neighbours (so 6 to 7 in effect), a
    line of 500,000 tokens has a standard deviation of 0.01 nats; of 5 million it would have 0.003.
    """
    if progress:
        progress(0, None, "counting n-gram baselines")
    train = _first_tokens(folder, splits["train"], dtype, FITTED_TOKENS)
    validation = _first_tokens(folder, splits["validation"], dtype, SCORED_TOKENS)
    return {**ngram_baselines(train, validation, vocab_size), "fitted_tokens": len(train)}


def _first_tokens(folder: Path, facts: SplitFacts, dtype: str, most: int) -> npt.NDArray[np.unsignedinteger]:
    """The first ids of a split, from as many of its files as they need."""
    little_endian = np.dtype(dtype).newbyteorder("<")
    parts: list[npt.NDArray[np.unsignedinteger]] = []
    for file in facts.files:
        parts.append(np.fromfile(folder / file.name, little_endian, most - sum(map(len, parts))))
        if sum(map(len, parts)) == most:
            break
    return np.concatenate(parts)


def check_target(out: Path, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse, before any work, what must not be replaced.

    Raises DataError when `out` is taken, is no data folder, or holds anything that smallgpt does not put into one, and
    ConfigError when one of the `inputs`, the files and folders to be read, is `out` or lies in it, or what check_replaceable
    refuses.
    """
    check_replaceable(out)
    if not out.exists():
        return
    if not overwrite:
        raise DataError(f"{out} exists already; choose another --out, or --overwrite to replace it")
    if not out.is_dir() or (any(out.iterdir()) and not (out / FILE_NAME).exists()):
        raise DataError(f"{out} is not a data folder and will not be replaced; choose another --out")
    for path in inputs:
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(f"{path} is to be read, and would be lost with {out}; choose another --out")
    foreign = sorted(path.name for path in out.iterdir() if not _is_own(path))
    if foreign:
        raise DataError(
            f"{out / foreign[0]} is none of a data folder's files and would be lost; move it elsewhere, "
            "or choose another --out"
        )


def _is_own(path: Path) -> bool:
    """Whether something in a data folder was put there by smallgpt."""
    return path.is_file() and (path.name in _OTHER_FILES or _TOKEN_FILES.fullmatch(path.name) is not None)

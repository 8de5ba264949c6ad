"""Writing a data folder, which appears whole or not at all: tokenized splits, tokenizer, manifest."""

import errno
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
import torch

from smallgpt.domain.errors import DataError
from smallgpt.domain.metrics import ngram_baselines
from smallgpt.infrastructure.files import folder_written_whole
from smallgpt.infrastructure.manifest import FILE_NAME, Manifest, SplitFacts, TokenFile, TokenizerFacts
from smallgpt.infrastructure.tokenizers import Progress, Tokenizer

SMALLEST_TEXT = 100
"""Bytes; less cannot be split and learned from."""
FITTED_TOKENS = 20_000_000
"""Training tokens the n-gram baselines are counted on at most."""
SCORED_TOKENS = 5_000_000
"""Validation tokens they are measured on at most."""
_TOKENS_AT_ONCE = 2**20

Split = Literal["train", "validation"]


def write_data_folder(
    out: Path,
    train_texts: Iterable[str],
    validation_texts: Iterable[str],
    tokenizer: Tokenizer,
    source: str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Tokenize documents into a new data folder, which appears whole or not at all. Errors as in `prepare_text`."""
    dtype = smallest_dtype(tokenizer.vocab_size)
    with data_folder(out, overwrite) as folder:
        tokenizer.save(folder / "tokenizer.json")
        train = _write_split(folder, "train", train_texts, tokenizer, dtype, progress)
        validation = _write_split(folder, "validation", validation_texts, tokenizer, dtype, progress)
        size = (train.text_bytes or 0) + (validation.text_bytes or 0)
        if size < SMALLEST_TEXT or not (train.documents and validation.documents):
            raise DataError(
                f"{source}: {size} bytes of text in {train.documents} training and {validation.documents} validation "
                f"documents are too few to learn from (at least {SMALLEST_TEXT} bytes, some in each); give more text"
            )
        splits: dict[Split, SplitFacts] = {"train": train, "validation": validation}
        manifest = Manifest(
            dtype=dtype,
            vocab_size=tokenizer.vocab_size,
            tokenizer=describe(tokenizer),
            source=source,
            splits=splits,
            baselines=count_baselines(folder, splits, dtype, tokenizer.vocab_size, progress),
        )
        manifest.save(folder)
    return manifest


@contextmanager
def data_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill that becomes `out` at the end. Raises DataError when `out` is taken or the disk refuses."""
    check_target(out, overwrite)
    try:
        with folder_written_whole(out) as folder:
            yield folder
    except OSError as error:
        remedy = "free some space or choose another --out" if error.errno == errno.ENOSPC else "choose another --out"
        raise DataError(f"{out}: cannot be written ({error.strerror or error}); {remedy}") from error


def smallest_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The token files' type: 16 bits as long as every id fits."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def describe(tokenizer: Tokenizer) -> TokenizerFacts:
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
) -> dict[str, float] | None:
    """n-gram baselines of the token files in folder; None when the vocabulary is too large to count triples."""
    if progress:
        progress(0, None, "counting n-gram baselines")
    little_endian = np.dtype(dtype).newbyteorder("<")
    train = np.fromfile(folder / splits["train"].files[0].name, little_endian, FITTED_TOKENS).astype(np.int64)
    validation = np.fromfile(folder / splits["validation"].files[0].name, little_endian, SCORED_TOKENS).astype(np.int64)
    try:
        baselines = ngram_baselines(torch.from_numpy(train), torch.from_numpy(validation), vocab_size)
    except ValueError:
        return None
    return {**baselines, "fitted_tokens": len(train)}


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse, before any work, what must not be replaced."""
    if not out.exists():
        return
    if not overwrite:
        raise DataError(f"{out} exists already; choose another --out, or --overwrite to replace it")
    if not out.is_dir() or (any(out.iterdir()) and not (out / FILE_NAME).exists()):
        raise DataError(f"{out} is not a data folder and will not be replaced; choose another --out")


def _write_split(
    folder: Path, split: Split, texts: Iterable[str], tokenizer: Tokenizer, dtype: str, progress: Progress | None
) -> SplitFacts:
    """Write SPLIT.bin: the ids of each document, then end-of-text."""
    total = len(texts) if isinstance(texts, Sized) else None
    starts: list[int] = []
    documents = text_bytes = longest = highest = last = 0
    with (folder / f"{split}.bin").open("wb") as file:
        writer = _Writer(file, dtype)
        for text in texts:
            ids = tokenizer.encode_array(text)
            writer.add(ids, tokenizer.end_of_text)
            starts.append(starts[-1] + last + 1 if starts else 0)
            documents, last = documents + 1, len(ids)
            highest = max(highest, int(ids.max()), tokenizer.end_of_text or 0)
            text_bytes += len(text.encode("utf-8"))
            longest = max(longest, len(ids))
            if progress and documents % 1000 == 0:
                progress(documents, total, f"{split} documents tokenized")
        writer.flush()
    np.save(folder / f"{split}.starts.npy", np.array(starts, dtype=np.int64))
    return SplitFacts(
        files=(TokenFile(name=f"{split}.bin", tokens=writer.tokens, sha256=writer.digest.hexdigest()),),
        tokens=writer.tokens,
        sha256=writer.digest.hexdigest(),
        highest_id=highest,
        documents=documents,
        starts=f"{split}.starts.npy",
        text_bytes=text_bytes,
        longest_document=longest,
    )


class _Writer:
    """Appends ids to a file a million at a time, counting and hashing what it writes."""

    def __init__(self, file: IO[bytes], dtype: str) -> None:
        self.file, self.dtype = file, np.dtype(dtype).newbyteorder("<")
        self.digest, self.tokens = sha256(), 0
        self.waiting: list[npt.NDArray[np.uint32]] = []
        self.waiting_tokens = 0

    def add(self, ids: npt.NDArray[np.uint32], end_of_text: int | None) -> None:
        self.waiting += [ids] if end_of_text is None else [ids, np.array([end_of_text], dtype=np.uint32)]
        self.waiting_tokens += len(ids) + 1
        if self.waiting_tokens >= _TOKENS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        content = b"".join(ids.astype(self.dtype).tobytes() for ids in self.waiting)
        self.file.write(content)
        self.digest.update(content)
        self.tokens += len(content) // self.dtype.itemsize
        self.waiting, self.waiting_tokens = [], 0

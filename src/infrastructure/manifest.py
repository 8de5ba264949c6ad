"""`dataset.json`: what a data folder holds, with sizes and hashes to check it by."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from smallgpt.domain.errors import DataError

FILE_NAME = "dataset.json"
Count = Annotated[int, Field(ge=0)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


FileName = Annotated[str, Field(pattern=r"^[\w.-]+$")]


class TokenFile(_Facts):
    """A part of a split's stream of tokens."""

    name: FileName
    tokens: Count
    """Ids in the file, end-of-text included."""
    sha256: str


class SplitFacts(_Facts):
    """One stream of tokens, in one file or in several that follow each other. None: what adopted files do not tell."""

    files: Annotated[tuple[TokenFile, ...], Field(min_length=1)]
    tokens: Count
    """Ids in all files, end-of-text included."""
    sha256: str
    """Which tokens these are: the digest of the one file, or one over the digests of several."""
    highest_id: Count
    documents: Count | None
    starts: FileName | None
    """A .npy file: int64 (documents,), where each document begins in the stream."""
    text_bytes: Count | None
    """UTF-8 bytes of the text, without separators."""
    longest_document: Count | None
    """Tokens of the longest document, without end-of-text."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        files = sum(file.tokens for file in self.files)
        if files != self.tokens:
            raise ValueError(f"{self.tokens} tokens, but its files have {files}")
        return self


def digest_of(files: Sequence[TokenFile]) -> str:
    """SplitFacts.sha256."""
    if len(files) == 1:
        return files[0].sha256
    return sha256("".join(file.sha256 for file in files).encode()).hexdigest()


class TokenizerFacts(_Facts):
    """Which tokenizer made the tokens; `tokenizer.json` holds it."""

    kind: Literal["gpt2", "bpe", "bytes", "characters"]
    fingerprint: str
    end_of_text: int | None
    vocab_size: Annotated[int, Field(ge=1)]


class LeftOut(_Facts):
    """Documents left out because others are there that are equal, or nearly so."""

    copies: Literal["exact", "near"]
    train: Count
    """Training documents that another one repeats."""
    train_in_validation: Count
    """Training documents that are in the validation split, which stays what it is."""
    validation: Count
    """Validation documents that another one repeats."""


class Manifest(_Facts):
    """All of `dataset.json`."""

    format_version: Literal[2] = 2
    dtype: Literal["uint16", "uint32"]
    vocab_size: Annotated[int, Field(ge=1)]
    """Every id is below it."""
    tokenizer: TokenizerFacts | None
    source: str
    revision: str | None = None
    """The commit of a hub dataset."""
    splits: dict[Literal["train", "validation"], SplitFacts]
    left_out: LeftOut | None = None
    """Copies that are not in the splits."""
    baselines: dict[str, float] | None
    """uniform, unigram, bigram, trigram: nats per validation token; fitted_tokens: the training tokens counted."""

    @property
    def item_size(self) -> int:
        """Bytes of a token on disk."""
        return 2 if self.dtype == "uint16" else 4

    def save(self, folder: Path) -> None:
        """Write `dataset.json` into folder."""
        (folder / FILE_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data folder. Raises DataError when it is missing or cannot be used."""
    path = folder / FILE_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(_missing(folder)) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path}: {where}: {first['msg']}; prepare the data again") from error


def _missing(folder: Path) -> str:
    if folder.is_file():
        return f"{folder}: a file, not a data folder; `smallgpt prepare text {folder} --out NEW_FOLDER` makes one of a text"
    if not folder.is_dir():
        return f"{folder}: no such data folder; `smallgpt prepare demo --out {folder}` makes one"
    if (folder / "train.bin").exists():
        return (
            f"{folder}: token files without a {FILE_NAME}; run `smallgpt prepare bins {folder} --out NEW_FOLDER` "
            "and use the new folder"
        )
    return f"{folder}: not a data folder, it has no {FILE_NAME}; `smallgpt prepare` makes one"

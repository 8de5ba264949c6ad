"""Data folders opened for reading: one, or several whose streams follow each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.manifest import Manifest, SplitFacts, digest_of, read_manifest
from smallgpt.infrastructure.tokenizers import AnyTokenizer, load_tokenizer
from smallgpt.infrastructure.tokens import Places, TokenPart, Tokens, file_part

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class DataFolder:
    """A folder and its manifest."""

    path: Path
    manifest: Manifest

    def facts(self, split: str) -> SplitFacts:
        """What the manifest says of "train" or "validation". Raises DataError when it does not know the split."""
        for name, facts in self.manifest.splits.items():
            if name == split:
                return facts
        raise DataError(f"{self.path}: no split {split!r}, only {', '.join(self.manifest.splits)}")

    def parts(self, split: str) -> list[TokenPart]:
        """The token files of a split, none of them opened yet."""
        return [file_part(self.path / f.name, self.manifest.dtype, f.tokens) for f in self.facts(split).files]

    def tokens(self, split: str) -> Tokens:
        """The stream of a split."""
        return Tokens(self.parts(split), self.manifest.dtype, self.manifest.vocab_size)

    def starts(self, split: str) -> Places:
        """(documents,) int64: where each document begins in the stream, mapped from the file.

        Raises ConfigError when they are not known, DataError when the file is not what the manifest says.
        """
        facts, remedy = self.facts(split), "prepare the data again"
        if facts.starts is None:
            raise ConfigError(
                f"{self.path} does not say where documents start; train with --data.windows anywhere, or {remedy}\n"
                "(token files that were adopted: `smallgpt prepare bins DIR` with the --tokenizer that made them)"
            )
        path = self.path / facts.starts
        try:
            starts = np.lib.format.open_memmap(path, mode="r")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from error
        except ValueError as error:
            raise DataError(f"{path}: not a NumPy file of document starts ({error}); {remedy}") from error
        if starts.dtype != np.int64 or starts.shape != (facts.documents,):
            raise DataError(
                f"{path}: {starts.dtype} {starts.shape}, but dataset.json says {facts.documents} documents, int64; {remedy}"
            )
        if len(starts) == 0:
            raise DataError(f"{path}: no documents; {remedy} with more text")
        return np.asarray(starts)


class TokenStore:
    """Data folders that `open_store` has checked: one, or several of one tokenizer."""

    def __init__(self, folders: Sequence[DataFolder]) -> None:
        self.folders = tuple(folders)

    @property
    def name(self) -> str:
        """The folder, or the folders, in words."""
        return " + ".join(str(folder.path) for folder in self.folders)

    @property
    def manifest(self) -> Manifest:
        """Of the first folder: what all of them agree on is its dtype and tokenizer."""
        return self.folders[0].manifest

    @property
    def vocab_size(self) -> int:
        """Every id is below it."""
        return max(folder.manifest.vocab_size for folder in self.folders)

    @property
    def end_of_text(self) -> int | None:
        """The id after every document, where the tokenizer is known to have one."""
        return self.manifest.tokenizer.end_of_text if self.manifest.tokenizer else None

    @property
    def tokenizer_file(self) -> Path | None:
        """`tokenizer.json`; None for adopted tokens of an unknown tokenizer."""
        return self.folders[0].path / "tokenizer.json" if self.manifest.tokenizer else None

    @property
    def baselines(self) -> dict[str, float]:
        """n-gram baselines in nats per token; empty when they were not counted, and for several folders."""
        return self.manifest.baselines or {} if len(self.folders) == 1 else {}

    def tokens(self, split: str) -> Tokens:
        """The ids of "train" or "validation", folder after folder."""
        parts = [part for folder in self.folders for part in folder.parts(split)]
        return Tokens(parts, self.manifest.dtype, self.vocab_size)

    def text_bytes(self, split: str) -> int | None:
        """UTF-8 bytes of a split's text without separators; None when unknown."""
        return _sum([folder.facts(split).text_bytes for folder in self.folders])

    def documents(self, split: str) -> int | None:
        """Documents in a split; None when unknown."""
        return _sum([folder.facts(split).documents for folder in self.folders])

    def sha256(self, split: str) -> str:
        """Which tokens these are: the manifest's digest, or one over those of several folders."""
        facts = [folder.facts(split) for folder in self.folders]
        return facts[0].sha256 if len(facts) == 1 else digest_of([file for each in facts for file in each.files])

    @cached_property
    def tokenizer(self) -> AnyTokenizer | None:
        """The tokenizer that made the tokens, read once. Raises DataError when `tokenizer.json` is another one."""
        facts, path = self.manifest.tokenizer, self.tokenizer_file
        if facts is None or path is None:
            return None
        tokenizer = load_tokenizer(path)
        if tokenizer.fingerprint != facts.fingerprint:
            raise DataError(
                f"{path}: fingerprint {tokenizer.fingerprint[:12]}, but the tokens were made with "
                f"{facts.fingerprint[:12]}; prepare the data again"
            )
        return tokenizer


def open_store(*paths: Path) -> TokenStore:
    """Open data folders after checking manifests and the sizes of their files; no token is read (`verify_store` does).

    Raises DataError that says what is wrong and what to do.
    """
    store = TokenStore([DataFolder(path, read_manifest(path)) for path in paths])
    for folder in store.folders:
        for split in SPLITS:
            _check_split(folder, split)
        _check_alike(store.folders[0], folder)
    return store


def _check_split(folder: DataFolder, split: str) -> None:
    """The manifest's numbers against each other and against the sizes of the files."""
    facts, manifest = folder.facts(split), folder.manifest
    if facts.highest_id >= manifest.vocab_size:
        raise DataError(
            f"{folder.path / facts.files[0].name}: token id {facts.highest_id}, but the vocabulary ends at "
            f"{manifest.vocab_size - 1}; the file is damaged or of another tokenizer: prepare the data again"
        )
    if facts.highest_id >= 2 ** (8 * manifest.item_size):
        raise DataError(
            f"{folder.path / facts.files[0].name}: token id {facts.highest_id} in a file of {manifest.dtype}, which ends at "
            f"{2 ** (8 * manifest.item_size) - 1}; the ids were cut: prepare the data again (it takes uint32 for them)"
        )
    if facts.tokens == 0:
        raise DataError(f"{folder.path / facts.files[0].name}: no tokens; prepare the data again with more text")
    for file in facts.files:
        check_size(folder.path / file.name, file.tokens, manifest.item_size)


def check_size(path: Path, tokens: int, item_size: int) -> None:
    """Raises DataError unless the file has room for exactly that many tokens."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); prepare the data again") from error
    if size != tokens * item_size:
        raise DataError(
            f"{path}: {size} bytes, but dataset.json says {tokens} tokens of {item_size} bytes; "
            "the file was cut or changed: prepare the data again"
        )


def _check_alike(first: DataFolder, other: DataFolder) -> None:
    """Ids of two folders must mean the same and be stored alike."""
    if other is first:
        return
    ours, theirs = first.manifest.tokenizer, other.manifest.tokenizer
    if ours is None or theirs is None:
        unknown = first if ours is None else other
        raise DataError(
            f"{unknown.path} does not say which tokenizer made its tokens, so {first.path} and {other.path} cannot be mixed; "
            "adopt it again with --tokenizer"
        )
    if ours.fingerprint != theirs.fingerprint:
        raise DataError(
            f"{first.path} and {other.path} were made with different tokenizers ({ours.kind} {ours.fingerprint[:12]}, "
            f"{theirs.kind} {theirs.fingerprint[:12]});\nprepare one again with --tokenizer "
            f"{first.path / 'tokenizer.json'}"
        )
    if first.manifest.dtype != other.manifest.dtype:
        raise DataError(
            f"{first.path} has {first.manifest.dtype} files and {other.path} {other.manifest.dtype}; prepare one of them again"
        )


def _sum(amounts: Sequence[int | None]) -> int | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None

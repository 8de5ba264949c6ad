"""Token files: memory-mapped splits of a data folder, and the batches and blocks that are cut from them."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.manifest import Manifest, SplitFacts, read_manifest
from smallgpt.infrastructure.permutation import mix, permute
from smallgpt.infrastructure.tokenizers import Tokenizer, load_tokenizer

Tokens = npt.NDArray[np.unsignedinteger]
SPLITS = ("train", "validation")
BLOCKS_AT_ONCE = 32
_SCANNED_AT_ONCE = 2**24
_NO_TARGET = -100


class TokenStore:
    """A data folder that `open_store` has checked."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def vocab_size(self) -> int:
        """Every id is below it."""
        return self.manifest.vocab_size

    @property
    def end_of_text(self) -> int | None:
        """The id after every document, where the tokenizer is known to have one."""
        return self.manifest.tokenizer.end_of_text if self.manifest.tokenizer else None

    @property
    def tokenizer_file(self) -> Path | None:
        """`tokenizer.json`; None for adopted tokens of an unknown tokenizer."""
        return self.folder / "tokenizer.json" if self.manifest.tokenizer else None

    @property
    def baselines(self) -> dict[str, float]:
        """n-gram baselines in nats per token; empty when they were not counted."""
        return self.manifest.baselines or {}

    def tokens(self, split: str) -> Tokens:
        """(tokens,) ids of "train" or "validation", uint16 or uint32, mapped from the file."""
        facts = self._facts(split)
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        return np.memmap(self.folder / facts.files[0].name, dtype=dtype, mode="r", shape=(facts.tokens,))

    def text_bytes(self, split: str) -> int | None:
        """UTF-8 bytes of a split's text without separators; None when unknown."""
        return self._facts(split).text_bytes

    def documents(self, split: str) -> int | None:
        """Documents in a split; None when unknown."""
        return self._facts(split).documents

    def sha256(self, split: str) -> str:
        """Of a split's token file, as the manifest has it."""
        return self._facts(split).sha256

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
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

    def _facts(self, split: str) -> SplitFacts:
        for name, facts in self.manifest.splits.items():
            if name == split:
                return facts
        raise DataError(f"{self.folder}: no split {split!r}, only {', '.join(self.manifest.splits)}")


def open_store(folder: Path, to_read: Sequence[str] = SPLITS) -> TokenStore:
    """Open a data folder after checking its manifest, file sizes, and that every id of the splits `to_read` is valid.

    Raises DataError that says what is wrong and what to do.
    """
    store = TokenStore(folder, read_manifest(folder))
    for split in SPLITS:
        facts = store._facts(split)
        _check_size(folder / facts.files[0].name, facts.tokens, store.manifest.item_size)
        if split in to_read:
            _check_ids(store, facts, highest_id(store.tokens(split)))
    return store


def verify_store(folder: Path) -> TokenStore:
    """`open_store`, and every byte against the manifest's SHA-256, in one reading of the files."""
    store = open_store(folder, to_read=())
    for split in SPLITS:
        facts, tokens = store._facts(split), store.tokens(split)
        digest, highest = sha256(), 0
        for at in range(0, len(tokens), _SCANNED_AT_ONCE):
            part = tokens[at : at + _SCANNED_AT_ONCE]
            digest.update(part.data)
            highest = max(highest, int(part.max()))
        _check_ids(store, facts, highest)
        if digest.hexdigest() != facts.sha256:
            raise DataError(
                f"{folder / facts.files[0].name}: SHA-256 {digest.hexdigest()[:12]}, but dataset.json has {facts.sha256[:12]}; "
                "the file was changed: prepare the data again"
            )
    _ = store.tokenizer
    return store


def _check_ids(store: TokenStore, facts: SplitFacts, highest: int) -> None:
    if highest >= store.vocab_size:
        raise DataError(
            f"{store.folder / facts.files[0].name}: token id {highest}, but the vocabulary ends at {store.vocab_size - 1}; "
            "the file is damaged or of another tokenizer: prepare the data again"
        )


def highest_id(tokens: Tokens) -> int:
    """The largest id, read in parts so that a mapped file never fills the memory."""
    parts = range(0, len(tokens), _SCANNED_AT_ONCE)
    return max(int(tokens[at : at + _SCANNED_AT_ONCE].max()) for at in parts)


def _check_size(path: Path, tokens: int, item_size: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); prepare the data again") from error
    if size != tokens * item_size or tokens == 0:
        raise DataError(
            f"{path}: {size} bytes, but dataset.json says {tokens} tokens of {item_size} bytes; "
            "the file was cut or changed: prepare the data again"
        )


class WindowBatches:
    """Training batches as a pure function of (seed, step, row): application.ports.Batches.

    An epoch visits every window of block_size tokens once, in an order of its own, and each epoch's windows are shifted
    by a phase of its own, so that a token is not always met with the same context.
    """

    def __init__(self, tokens: Tokens, *, block_size: int, batch_size: int, seed: int) -> None:
        if len(tokens) < block_size + 1:
            raise DataError(
                f"{len(tokens)} training tokens are too few for a block of {block_size} and its next token; "
                f"lower --model.block-size to at most {len(tokens) - 1}, or prepare more text"
            )
        self._tokens, self._batch_size, self._seed = tokens, batch_size, seed
        self.block_size = block_size
        self.windows = max(1, len(tokens) // block_size - 1)
        """Windows in an epoch."""

    def rows(self, step: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (len(rows), block_size) int64 each, of those rows of the step's batch."""
        start = self.starts(step, rows)
        window = self._tokens[start[:, None] + np.arange(self.block_size + 1)].astype(np.int64)
        return torch.from_numpy(window[:, :-1].copy()), torch.from_numpy(window[:, 1:].copy())

    def starts(self, step: int, rows: Sequence[int]) -> npt.NDArray[np.int64]:
        """(len(rows),): where the windows of those rows begin."""
        T = self.block_size
        sample = np.asarray(rows, dtype=np.int64) + step * self._batch_size
        epoch, index = sample // self.windows, sample % self.windows
        key = mix(mix(np.full_like(epoch, self._seed, dtype=np.uint64)) ^ epoch.astype(np.uint64))
        phase = (key % np.uint64(min(T, len(self._tokens) - self.windows * T))).astype(np.int64)
        return phase + T * permute(index, self.windows, key)


class ShortThenFull:
    """Batches of windows half as long, and twice as many, for the first `short_steps`; full windows from then on.

    A step has the same number of tokens in both parts, and row r of a batch stands for the short windows 2r and 2r + 1.
    """

    def __init__(self, tokens: Tokens, *, block_size: int, batch_size: int, seed: int, short_steps: int) -> None:
        self.tokens, self.short_steps = tokens, short_steps
        self.short = WindowBatches(tokens, block_size=max(1, block_size // 2), batch_size=2 * batch_size, seed=seed)
        self.full = WindowBatches(tokens, block_size=block_size, batch_size=batch_size, seed=seed)

    def rows(self, step: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See application.ports.Batches."""
        batches, rows = self._at(step, rows)
        return batches.rows(step, rows)

    def starts(self, step: int, rows: Sequence[int]) -> tuple[npt.NDArray[np.int64], int]:
        """Where the windows of those rows begin in `tokens`, and their length."""
        batches, rows = self._at(step, rows)
        return batches.starts(step, rows), batches.block_size

    def _at(self, step: int, rows: Sequence[int]) -> tuple[WindowBatches, Sequence[int]]:
        if step >= self.short_steps:
            return self.full, rows
        return self.short, [2 * row + half for row in rows for half in (0, 1)]


def evaluation_blocks(
    tokens: Tokens, block_size: int, start: int | None, *, max_tokens: int | None = None, batch: int = BLOCKS_AT_ONCE
) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive blocks of the stream [start] + tokens: inputs and targets, (up to batch, block_size) int64.

    With start (the end-of-text id) every token is predicted once, without it every one but the first; max_tokens keeps
    to the first ones. The last block is filled up, its targets with -100. Raises DataError when nothing is to predict.
    """
    first = 0 if start is not None else 1
    end = len(tokens) if max_tokens is None else min(len(tokens), first + max_tokens)
    if end <= first:
        raise DataError(f"{len(tokens)} tokens leave nothing to predict; prepare more validation text")
    for low in range(first, end, block_size * batch):
        high = min(end, low + block_size * batch)
        shape = (-(-(high - low) // block_size), block_size)
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, _NO_TARGET, dtype=np.int64)
        targets.ravel()[: high - low] = tokens[low:high]
        context = tokens[max(low - 1, 0) : high - 1]
        inputs.ravel()[high - low - len(context) : high - low] = context
        if low == 0 and start is not None:
            inputs[0, 0] = start
        yield torch.from_numpy(inputs), torch.from_numpy(targets)

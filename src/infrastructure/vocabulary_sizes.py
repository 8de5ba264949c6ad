"""Which vocabulary: what every size of an own BPE costs on a corpus and a model, and which one to take.

More ids make tokens longer, so that a text takes fewer of them through the blocks, but every token then meets a larger head.
The size to take is the one with the least work for a byte of text, among those whose ids the corpus can teach.
docs/tokenizers.md says why.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import DataError
from smallgpt.domain.flops import flops_per_token
from smallgpt.infrastructure.bpe_training import own_tokenizer, train_bpe, training_sample
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.tokenizers import GPT2_IDS, Tokenizer, byte_tokenizer, gpt2_tokenizer
from smallgpt.infrastructure.trimming import trim

SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
OFTEN = 50
"""How often the typical merged id of a vocabulary must occur to be learned."""
_CHARACTERS_AT_ONCE = 1_000_000
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VocabularyFacts:
    """One vocabulary on one corpus, in front of one model."""

    tokenizer: Literal["gpt2", "gpt2 trimmed", "bpe", "bytes"]
    vocab_size: int
    ids_used: int
    """Distinct ids that occur, end-of-text among them."""
    typical_count: int
    """How often the median id of two bytes or more occurs; 0 where there is none."""
    bytes_per_token: float
    """UTF-8 bytes of text ÷ tokens, end-of-text left out."""
    head_parameters: int
    """Of the token embedding, which the head shares."""
    parameters_saved: int
    """Against the embedding of GPT-2's whole vocabulary."""
    head_share: float
    """Of a trained token's FLOPs."""
    flops_per_byte: float
    """FLOPs of a trained token ÷ bytes per token."""


@dataclass(frozen=True)
class SizeTable:
    """Sizes of an own BPE, the smallest first, and the one to take."""

    rows: tuple[VocabularyFacts, ...]
    tokenizer: Tokenizer
    """Of the size to take, as `train_bpe` would make it."""

    @property
    def chosen(self) -> int:
        """The size to take."""
        return self.tokenizer.vocab_size


def suggest_vocab_size(
    texts: Iterable[str], model: GPTConfig, progress: Progress | None = None, *, specials: Sequence[str] = ()
) -> SizeTable:
    """Train one BPE of the largest size, count its ids, and compare it with its own beginnings.

    texts are iterated twice, and read up to `bpe_training.TRAINING_CHARACTERS`; the vocab_size of model is not looked at.
    Raises DataError when there is no text.
    """
    largest = train_bpe(texts, SIZES[-1], progress, specials=specials)
    counts = count_ids(largest, texts, progress)
    if not counts @ largest.byte_lengths():
        raise DataError("there is no text to choose a vocabulary by; name files that have some, or give --vocab-size")
    names = list(largest.specials)
    sizes = [size for size in SIZES if size <= largest.vocab_size] or [largest.vocab_size]
    rows = [facts("bpe", each, lengths, model) for each, lengths in _beginnings(largest, counts, sizes)]
    learnable = [row for row in rows if row.typical_count >= OFTEN] or rows[:1]
    chosen = min(learnable, key=lambda row: row.flops_per_byte).vocab_size
    return SizeTable(tuple(rows), own_tokenizer(largest.rules.merges[: chosen - 256 - len(names)], names))


def compare_tokenizers(
    texts: Iterable[str], model: GPTConfig, progress: Progress | None = None
) -> tuple[list[VocabularyFacts], int, str | None]:
    """GPT-2's tokenizer, that one trimmed, own BPEs and bytes on texts (read as by `suggest_vocab_size`, three times).

    With the suggested size of an own BPE, and with why GPT-2's rows are missing, if they are.
    """
    table = suggest_vocab_size(texts, model, progress)
    plain = byte_tokenizer()
    rows = [*table.rows, facts("bytes", count_ids(plain, texts, progress), plain.byte_lengths(), model)]
    try:
        gpt2 = gpt2_tokenizer()
    except DataError as error:
        return rows, table.chosen, str(error)
    counts = count_ids(gpt2, texts, progress)
    trimmed, renumber = trim(gpt2, counts > 0)
    kept = np.zeros(trimmed.vocab_size, dtype=np.int64)
    kept[renumber[counts > 0]] = counts[counts > 0]
    whole = facts("gpt2", counts, gpt2.byte_lengths(), model)
    return [whole, facts("gpt2 trimmed", kept, trimmed.byte_lengths(), model), *rows], table.chosen, None


def count_ids(tokenizer: Tokenizer, texts: Iterable[str], progress: Progress | None = None) -> Counts:
    """(vocab_size,) how often each id occurs in the texts that a BPE would be trained on, end-of-text after each."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    done = 0
    for batch in _batches(training_sample(texts)):
        counts += np.bincount(tokenizer.encode_documents(batch)[0], minlength=tokenizer.vocab_size)
        done += len(batch)
        if progress:
            progress(done, None, f"documents counted in {tokenizer.vocab_size:,} ids")
    return counts


def facts(
    name: Literal["gpt2", "gpt2 trimmed", "bpe", "bytes"], counts: Counts, lengths: Counts, model: GPTConfig
) -> VocabularyFacts:
    """counts and lengths are (vocab_size,): how often each id occurs, and its bytes (0 for special tokens)."""
    vocab_size = len(counts)
    bytes_per_token = float(counts @ lengths / counts[lengths > 0].sum())
    merged = counts[lengths > 1]
    head = vocab_size * model.n_embd
    work = flops_per_token(model.model_copy(update={"vocab_size": vocab_size}))
    return VocabularyFacts(
        tokenizer=name,
        vocab_size=vocab_size,
        ids_used=int(np.count_nonzero(counts)),
        typical_count=int(np.median(merged)) if len(merged) else 0,
        bytes_per_token=bytes_per_token,
        head_parameters=head,
        parameters_saved=GPT2_IDS * model.n_embd - head,
        head_share=6 * head / work,
        flops_per_byte=work / bytes_per_token,
    )


def _beginnings(tokenizer: Tokenizer, counts: Counts, sizes: Sequence[int]) -> Iterator[tuple[Counts, Counts]]:
    """Counts and byte lengths of ids for each size, ascending, of an own BPE that stops merging there.

    Merges happen in the order of their ids, so a text's tokens at a smaller size are what is left of its tokens at a larger
    one when the merges between them are undone, the last one first. No text has to be read again.
    """
    vocabulary, merges, specials = tokenizer.rules
    left_of, right_of = (
        ([vocabulary[part] for part in parts] for parts in zip(*merges, strict=True)) if merges else ([], [])
    )
    running, lengths = counts.tolist(), tokenizer.byte_lengths()
    ordinary = len(vocabulary)
    found: list[tuple[Counts, Counts]] = []
    for larger, size in pairwise([tokenizer.vocab_size, *reversed(sizes)]):
        for number in range(larger - len(specials) - 1, size - len(specials) - 1, -1):
            running[left_of[number - 256]] += running[number]
            running[right_of[number - 256]] += running[number]
        kept = [*range(size - len(specials)), *range(ordinary, tokenizer.vocab_size)]
        found.append((np.array(running)[kept], lengths[kept]))
    return reversed(found)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

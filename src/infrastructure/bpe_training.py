"""A byte-level BPE trained on a corpus, by Hugging Face's `tokenizers`; run like the others (tokenizers.py)."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from smallgpt.domain.errors import ConfigError
from smallgpt.infrastructure.corpora.parts import Part
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.surrogates import well_formed
from smallgpt.infrastructure.tokenizer_files import as_bytes
from smallgpt.infrastructure.tokenizers import END_OF_TEXT, LONGEST_PIECE, Tokenizer, pieces

TRAINING_CHARACTERS = 100_000_000
"""Text a BPE is trained on at most; more changes the merges little and costs memory."""
DIFFERENT_WORDS_BYTES = 2_000_000
"""And so many bytes of words that differ from each other: the trainer takes up to 170 bytes of memory for each of them."""
_WORD = re.compile(r"[^\W\d_]+|\d+")
_LONG_WORD = re.compile(r"(\w{1000})\w+")
_DOCUMENTS_BETWEEN_LINES = 1000
_MERGED_A_SECOND = 10_000_000
"""Characters of text for a second of merging, on a slow machine and text with many different words."""


def train_bpe(
    texts: Iterable[str], vocab_size: int, progress: Progress | None = None, *, specials: Sequence[str] = ()
) -> Tokenizer:
    """A byte-level BPE of at most vocab_size ids trained on texts, or on as much of them as the limits above allow.

    The last ids are end-of-text and then the specials. The same texts give the same tokenizer, and a smaller vocab_size
    the first of the same merges. A small corpus may run out of pairs before vocab_size. Raises ConfigError for fewer ids
    than bytes and special tokens, and for a special token that is empty or an ordinary token too.
    """
    from tokenizers import Tokenizer as HubTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    names = list(dict.fromkeys([END_OF_TEXT, *specials]))
    least = 256 + len(names)
    if vocab_size < least:
        what = "end-of-text" if len(names) == 1 else f"{len(names)} special tokens"
        raise ConfigError(f"vocab_size ({vocab_size}) must be at least {least}: 256 bytes and {what}")
    trained = HubTokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(names), initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(_training_pieces(texts, progress), trainer)

    pairs = [as_bytes(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return own_tokenizer([(left, right) for left, right in pairs], names)


def own_tokenizer(merges: list[tuple[bytes, bytes]], specials: Sequence[str]) -> Tokenizer:
    """The tokenizer of some merges: id = byte, then a token a merge, then the specials."""
    tokens = [*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    for name in specials:
        if name.encode() in vocabulary or not name:
            raise ConfigError(f"special token {name!r} is an ordinary token too; write it like <|user|>")
    return Tokenizer(vocabulary, merges, {name: len(tokens) + at for at, name in enumerate(specials)})


def training_parts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts spread over a whole corpus, about as many as a BPE is trained on: its beginning alone may be of one kind."""
    return tuple(parts[:: max(1, sum(part.size for part in parts) // TRAINING_CHARACTERS)])


def training_sample(texts: Iterable[str]) -> Iterator[str]:
    """The texts until TRAINING_CHARACTERS of them have been read."""
    characters = 0
    for text in texts:
        if characters >= TRAINING_CHARACTERS:
            return
        characters += len(text)
        yield text


def _training_pieces(texts: Iterable[str], progress: Progress | None) -> Iterator[str]:
    """What the trainer reads: pieces of the texts, until there are enough different words to learn from.

    Of a word that fills a whole piece only the start is kept: merging inside words of 32,768 characters takes minutes.
    """
    words: set[str] = set()
    characters = different = 0
    for done, text in enumerate(training_sample(texts)):
        if different >= DIFFERENT_WORDS_BYTES:
            break
        characters += len(text)
        for piece in pieces(well_formed(text)):
            yield piece if len(piece) < LONGEST_PIECE else _LONG_WORD.sub(r"\1", piece)
        new = set(_WORD.findall(text)) - words
        different += sum(min(len(word.encode(errors="replace")), LONGEST_PIECE) for word in new)
        words |= new
        if progress and done % _DOCUMENTS_BETWEEN_LINES == 0:
            progress(done, None, "reading for the tokenizer", f"{done:,} documents")
    if progress:  # the trainer tells nothing while it merges
        progress(0, None, "merging", f"the commonest pairs, some {1 + characters // _MERGED_A_SECOND} s")

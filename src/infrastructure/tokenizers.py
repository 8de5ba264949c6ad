"""Text to token ids and back: GPT-2's own BPE, a byte-level BPE trained on the corpus, and plain bytes.

All three are one thing, a byte-level BPE with GPT-2's splitting pattern: the bytes tokenizer just has no merges. On
disk it is a Hugging Face `tokenizer.json`, so that other tools read it; in memory it runs through tiktoken, which is
faster and never turns text into a special token.
"""

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tiktoken
from tiktoken.load import read_file_cached

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.character_tokenizer import MODEL, CharacterTokenizer, characters_of
from smallgpt.infrastructure.gpt2_files import ADDRESS, MERGES, provide_gpt2_files
from smallgpt.infrastructure.surrogates import well_formed
from smallgpt.infrastructure.tokenizer_files import Rules, gpt2_rules, read_file, rules_of, write_rules

END_OF_TEXT = "<|endoftext|>"
# How GPT-2 splits text before merging (its release's encoder.py). Part of every fingerprint, so left as it is.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# The same pieces, found in about half of the time: a group without look-ahead or possessive repeats is matched by an automaton.
_FAST_PATTERN = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+$|\s+(?!\S)|\s"
GPT2_FINGERPRINT = "60e8a854438629a81901db904359fffeda13be54c422719b532e3b1ccb658834"
GPT2_IDS = 50_257
LONGEST_PIECE = 32_768
"""Characters given to tiktoken at once: a run of a million spaces overflows its regex engine's stack."""


class Tokenizer:
    """A byte-level BPE with special tokens by name. Token ids are ints below vocab_size; no text gives a special one."""

    def __init__(
        self, vocabulary: dict[bytes, int], merges: list[tuple[bytes, bytes]], specials: Mapping[str, int]
    ) -> None:
        """As `tokenizer_files.Rules` says; specials are kept in the order of their ids."""
        self.rules = Rules(vocabulary, merges, dict(sorted(specials.items(), key=lambda item: item[1])))
        self.vocab_size = 1 + max(*vocabulary.values(), *specials.values())
        self._encoding = tiktoken.Encoding(
            "smallgpt", pat_str=_FAST_PATTERN, mergeable_ranks=vocabulary, special_tokens=self.rules.specials
        )

    def __reduce__(self) -> tuple[type["Tokenizer"], Rules]:
        """Pickled as its rules, for worker processes."""
        return Tokenizer, self.rules

    @property
    def specials(self) -> Mapping[str, int]:
        """The id of every special token by name, in the order of ids."""
        return self.rules.specials

    @property
    def end_of_text(self) -> int | None:
        """The id that ends a document."""
        return self.specials.get(END_OF_TEXT)

    def special(self, name: str) -> int:
        """The id of a special token, such as "<|user|>". Raises DataError for one that is not there."""
        if name not in self.specials:
            known = f"it has {', '.join(self.specials)}" if self.specials else "it has none"
            raise DataError(f"this tokenizer has no special token {name!r}; {known}")
        return self.specials[name]

    @property
    def name(self) -> Literal["gpt2", "bpe", "bytes"]:
        """gpt2, bytes, or bpe for any other."""
        if not self.rules.merges:
            return "bytes"
        return "gpt2" if self.vocab_size == GPT2_IDS and self.fingerprint == GPT2_FINGERPRINT else "bpe"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over vocabulary, merges, pattern and special tokens: equal when every text gets equal ids."""
        hex_of = {token: token.hex() for token in self.rules.vocabulary}
        tokens = sorted((number, hex_of[token]) for token, number in self.rules.vocabulary.items())
        merges = [(hex_of[left], hex_of[right]) for left, right in self.rules.merges]
        facts = [tokens, merges, PATTERN, self.end_of_text]
        others = [(name, number) for name, number in self.specials.items() if name != END_OF_TEXT]
        return sha256(json.dumps([*facts, others] if others else facts).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: a literal "<|endoftext|>" stays text, a lone surrogate becomes U+FFFD."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """`encode` as (tokens,) uint32, without a Python int for each token."""
        arrays = [self._encoding.encode_to_numpy(piece, disallowed_special=()) for piece in pieces(well_formed(text))]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def encode_documents(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """`encode_array` of many texts, each followed by end-of-text where there is one, and each one's length without it.

        (tokens,) uint32 and (documents,) int64. Texts of about a megabyte together are the fastest.
        """
        if self.end_of_text is not None and max(map(len, texts), default=0) <= LONGEST_PIECE:
            # tiktoken encodes what is between two special tokens as if it stood alone
            joined = well_formed("".join(f"{text}{END_OF_TEXT}" for text in texts))
            ids = self._encoding.encode_to_numpy(joined, allowed_special={END_OF_TEXT}, disallowed_special=())
            ends = np.flatnonzero(ids == self.end_of_text)
            if len(ends) == len(texts) == joined.count(END_OF_TEXT):  # no text holds the name itself
                return ids, np.diff(ends, prepend=-1) - 1
        stop = np.array([] if self.end_of_text is None else [self.end_of_text], dtype=np.uint32)
        arrays = [self.encode_array(text) for text in texts]
        lengths = np.array([len(ids) for ids in arrays], dtype=np.int64)
        return np.concatenate([stop[:0], *(part for ids in arrays for part in (ids, stop))]), lengths

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes behind ids; a special one gives its name. Raises DataError for an id outside the vocabulary."""
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            known = {*self.rules.vocabulary.values(), *self.specials.values()}
            wrong = next(number for number in ids if number not in known)
            raise DataError(
                f"token id {wrong} is not in this tokenizer's vocabulary of {self.vocab_size} ids; "
                "the tokens were made with another tokenizer"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text behind ids, U+FFFD for bytes that are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """(vocab_size,) text bytes behind each id; 0 for special tokens and for ids without a token."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, number in self.rules.vocabulary.items():
            lengths[number] = len(token)
        return lengths

    def save(self, path: Path) -> None:
        """Write a `tokenizer.json` that `tokenizers.Tokenizer.from_file` reads and encodes the same with."""
        write_rules(path, self.rules)


AnyTokenizer = Tokenizer | CharacterTokenizer
"""Either kind: whoever takes one needs what both of them have."""


class StreamDecoder:
    """Turns ids into text one at a time, holding back the bytes of an unfinished character."""

    def __init__(self, tokenizer: AnyTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The characters that this id completes; often none."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character."""
        return self._decoder.decode(b"", final=True)


def byte_tokenizer() -> Tokenizer:
    """256 bytes, id = byte, and end-of-text at 256."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, [], {END_OF_TEXT: 256})


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's 50,257 ids. The files are fetched on first use; raises DataError when they cannot be had."""
    provide_gpt2_files()
    try:
        merges = read_file_cached(ADDRESS + MERGES.name, MERGES.sha256)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
        raise DataError(
            f"the GPT-2 tokenizer is not in tiktoken's cache and could not be fetched ({type(error).__name__}); use "
            "--tokenizer bpe or bytes, or set TIKTOKEN_CACHE_DIR to a copy of the cache of a machine that has it"
        ) from error
    return Tokenizer(*gpt2_rules(merges, END_OF_TEXT))


def load_tokenizer(path: Path) -> AnyTokenizer:
    """Read a `tokenizer.json` of the GPT-2 kind, or of characters. Raises DataError for a missing, broken or other one."""
    return read_file(path, _of_document)


def _of_document(document: dict[str, Any]) -> AnyTokenizer:
    if document["model"].get("type") == MODEL:
        return CharacterTokenizer(characters_of(document))
    return Tokenizer(*rules_of(document))


def pieces(text: str) -> Iterator[str]:
    """text in pieces of at most LONGEST_PIECE characters, cut where the pattern cuts anyway.

    That is before a space or newline that follows something else. Only a longer run without such a place is cut
    anywhere, which can change the few ids around the cut; the bytes stay the same.
    """
    start = 0
    while len(text) - start > LONGEST_PIECE:
        end = start + LONGEST_PIECE
        places = (at for at in range(end, start, -1) if text[at] in " \n" and not text[at - 1].isspace())
        cut = next(places, end)
        yield text[start:cut]
        start = cut
    yield text[start:]

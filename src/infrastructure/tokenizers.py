"""Text to token ids and back: GPT-2's own BPE, a byte-level BPE trained on the corpus, and plain bytes.

All three are one thing, a byte-level BPE with GPT-2's splitting pattern: the bytes tokenizer just has no merges. On
disk it is a Hugging Face `tokenizer.json`, so that other tools read it; in memory it runs through tiktoken, which is
faster and never turns text into a control token. tiktoken merges by id and `tokenizers` by the order of the merges, so
the two agree when ids grow in merge order: true of GPT-2's file and of ours, and checked when a file is loaded.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tiktoken

from smallgpt.domain.errors import ConfigError, DataError

Progress = Callable[[int, int | None, str], None]
"""Told (done, total or None, what) as work goes on."""

END_OF_TEXT = "<|endoftext|>"
# How GPT-2 splits text before merging (its release's encoder.py), with possessive repeats, which match the same faster.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GPT2_FINGERPRINT = "60e8a854438629a81901db904359fffeda13be54c422719b532e3b1ccb658834"
LONGEST_PIECE = 32_768
"""Characters given to tiktoken at once: a run of a million spaces overflows its regex engine's stack."""
TRAINING_CHARACTERS = 100_000_000
"""Text a BPE is trained on at most; more changes the merges little and costs memory."""
_LONG_WORD = re.compile(r"(\w{1000})\w+")


class Tokenizer:
    """A byte-level BPE with an end-of-text id. Token ids are ints below vocab_size."""

    def __init__(
        self, vocabulary: dict[bytes, int], merges: list[tuple[bytes, bytes]], end_of_text: int | None
    ) -> None:
        self.end_of_text = end_of_text
        self.vocab_size = 1 + max(*vocabulary.values(), -1 if end_of_text is None else end_of_text)
        self._vocabulary = vocabulary
        self._merges = merges
        specials = {} if end_of_text is None else {END_OF_TEXT: end_of_text}
        self._encoding = tiktoken.Encoding(
            "smallgpt", pat_str=PATTERN, mergeable_ranks=vocabulary, special_tokens=specials
        )

    @property
    def name(self) -> Literal["gpt2", "bpe", "bytes"]:
        """gpt2, bytes, or bpe for any other."""
        if not self._merges:
            return "bytes"
        return "gpt2" if self.fingerprint == GPT2_FINGERPRINT else "bpe"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over vocabulary, merges, pattern and end-of-text: equal when every text gets equal ids."""
        tokens = sorted((number, token.hex()) for token, number in self._vocabulary.items())
        merges = [[left.hex(), right.hex()] for left, right in self._merges]
        return sha256(json.dumps([tokens, merges, PATTERN, self.end_of_text]).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: a literal "<|endoftext|>" stays text, a lone surrogate becomes U+FFFD."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """`encode` as (tokens,) uint32, without a Python int for each token."""
        pieces = [self._encoding.encode_to_numpy(piece, disallowed_special=()) for piece in _pieces(well_formed(text))]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes behind ids; end-of-text gives its name. Raises DataError for an id outside the vocabulary."""
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            known = {*self._vocabulary.values(), self.end_of_text}
            wrong = next(number for number in ids if number not in known)
            raise DataError(
                f"token id {wrong} is not in this tokenizer's vocabulary of {self.vocab_size} ids; "
                "the tokens were made with another tokenizer"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text behind ids, U+FFFD for bytes that are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """(vocab_size,) text bytes behind each id; 0 for end-of-text and for ids without a token."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, number in self._vocabulary.items():
            lengths[number] = len(token)
        return lengths

    def save(self, path: Path) -> None:
        """Write a `tokenizer.json` that `tokenizers.Tokenizer.from_file` reads and encodes the same with."""
        vocabulary = {_as_characters(token): number for token, number in self._vocabulary.items()}
        added = []
        if self.end_of_text is not None:
            vocabulary[END_OF_TEXT] = self.end_of_text
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            added = [{"id": self.end_of_text, "content": END_OF_TEXT, **flags}]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": [f"{_as_characters(left)} {_as_characters(right)}" for left, right in self._merges],
        }
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": model,
        }
        path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


class StreamDecoder:
    """Turns ids into text one at a time, holding back the bytes of an unfinished character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
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
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, [], 256)


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's 50,257 ids. tiktoken fetches the files on first use; raises DataError when it cannot."""
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
        raise DataError(
            f"the GPT-2 tokenizer is not in tiktoken's cache and could not be fetched ({type(error).__name__}); use "
            "--tokenizer bpe or bytes, or set TIKTOKEN_CACHE_DIR to a copy of the cache of a machine that has it"
        ) from error
    ranks = {token: encoding.encode_single_token(token) for token in encoding.token_byte_values()}
    return Tokenizer(ranks, _merges_of(ranks), encoding.eot_token)


def train_bpe(texts: Iterable[str], vocab_size: int, progress: Progress | None = None) -> Tokenizer:
    """A byte-level BPE of at most vocab_size ids trained on texts (their first 100 M characters); end-of-text is last.

    The same texts give the same tokenizer. A small corpus may run out of pairs before vocab_size. Raises ConfigError
    below 257 ids.
    """
    from tokenizers import Tokenizer as HubTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise ConfigError(f"vocab_size ({vocab_size}) must be at least 257: 256 bytes and end-of-text")
    trained = HubTokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(_training_pieces(texts, progress), trainer)

    vocabulary = {bytes([byte]): byte for byte in range(256)}
    merges = [(_as_bytes(left), _as_bytes(right)) for left, right in json.loads(trained.to_str())["model"]["merges"]]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    return Tokenizer(vocabulary, merges, len(vocabulary))


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json` of the GPT-2 kind. Raises DataError for a missing, broken or other kind of file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: the tokenizer cannot be read ({error.strerror}); prepare the data again") from error
    except ValueError as error:
        raise DataError(f"{path}: not a tokenizer.json ({error}); prepare the data again") from error
    try:
        return _from_document(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path}: not a byte-level BPE of the GPT-2 kind ({error}); `smallgpt prepare` writes one that fits"
        ) from error


def well_formed(text: str) -> str:
    """text with surrogate pairs joined and lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _from_document(document: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a parsed tokenizer.json describes; ValueError says what is not supported."""
    model, splitting = document["model"], document["pre_tokenizer"]
    if model["type"] != "BPE" or splitting is None or splitting["type"] != "ByteLevel":
        raise ValueError("another kind of model or splitting")
    if splitting["add_prefix_space"] or not splitting.get("use_regex", True) or document.get("normalizer"):
        raise ValueError("a prefix space, a normalizer, or another splitting pattern")
    specials = {token["content"]: token["id"] for token in document["added_tokens"]}
    if not specials.keys() <= {END_OF_TEXT}:
        raise ValueError(f"control tokens other than {END_OF_TEXT}")
    vocabulary = {_as_bytes(token): number for token, number in model["vocab"].items() if token not in specials}
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    merges = [(_as_bytes(left), _as_bytes(right)) for left, right in pairs]
    if any(bytes([byte]) not in vocabulary for byte in range(256)):
        raise ValueError("some bytes have no token")
    ids = [vocabulary[left + right] for left, right in merges]
    if any(after <= before for before, after in pairwise(ids)):
        raise ValueError("ids do not follow the order of the merges")
    return Tokenizer(vocabulary, merges, specials.get(END_OF_TEXT))


def _merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge behind every token of two bytes or more: its last two parts when merged with lower ranks only."""
    merges = []
    for token in sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            merged = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
            best = merged.index(min(merged))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def _pieces(text: str) -> Iterator[str]:
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


def _training_pieces(texts: Iterable[str], progress: Progress | None) -> Iterator[str]:
    """What the trainer reads: pieces of the texts, up to TRAINING_CHARACTERS.

    Of a word that fills a whole piece only the start is kept: merging inside words of 32,768 characters takes minutes.
    """
    characters = 0
    for done, text in enumerate(texts):
        if characters >= TRAINING_CHARACTERS:
            return
        characters += len(text)
        for piece in _pieces(well_formed(text)):
            yield piece if len(piece) < LONGEST_PIECE else _LONG_WORD.sub(r"\1", piece)
        if progress and done % 1000 == 0:
            progress(done, None, "documents read to train the tokenizer")


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where Latin-1 prints it, else the next of U+0100, U+0101, ..."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_CHARACTER_OF = _byte_characters()
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}


def _as_characters(token: bytes) -> str:
    return "".join(_CHARACTER_OF[byte] for byte in token)


def _as_bytes(token: str) -> bytes:
    return bytes(_BYTE_OF[character] for character in token)

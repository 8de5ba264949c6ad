"""Which tokenizer a corpus gets."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from smallgpt.domain.errors import ConfigError
from smallgpt.infrastructure.bpe_training import train_bpe, training_parts
from smallgpt.infrastructure.corpora.parts import Corpus, Documents, Part
from smallgpt.infrastructure.corpora.splitting import HeldOut
from smallgpt.infrastructure.files import sha256
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.tokenizers import AnyTokenizer, byte_tokenizer, gpt2_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from smallgpt.domain.config import GPTConfig
    from smallgpt.infrastructure.vocabulary_sizes import SizeTable


@dataclass(frozen=True)
class TokenizerChoice:
    """gpt2, bpe (trained on the corpus), bytes, or the path of a tokenizer.json."""

    kind: str = "bpe"
    vocab_size: int | Literal["auto"] = 2048
    """Ids of an own BPE; auto: what suits the corpus and a model."""
    model: "GPTConfig | None" = None
    """For auto; its own vocab_size is not looked at. None: the usual one."""
    specials: tuple[str, ...] = ()
    """Names of an own BPE's special tokens beside end-of-text."""
    trim: bool = False
    """Keep only the ids that occur, and renumber them."""
    tell_sizes: "Callable[[SizeTable], None] | None" = None
    """Shown what auto chose from."""

    def plan(self, corpus: Corpus, validation_share: float) -> Iterator[str]:
        """What decides the tokenizer, for the key of a draft. An own BPE is trained on what is not held out."""
        yield self.kind
        if self.kind == "bpe":
            model = repr(self.model) if self.vocab_size == "auto" else ""
            held_out = validation_share if corpus.validation is None else 0
            yield from (str(self.vocab_size), model, str(held_out), *self.specials)
            yield from map(repr, corpus.train)
        elif self.kind.endswith(".json") and Path(self.kind).is_file():
            yield sha256(Path(self.kind))

    def make(self, texts: Iterable[str], progress: Progress | None = None) -> AnyTokenizer:
        """The tokenizer; texts are read, more than once, for an own BPE alone."""
        if self.specials and self.kind != "bpe":
            raise ConfigError(f"special tokens are given to an own BPE alone, not to {self.kind}; say --tokenizer bpe")
        match self.kind:
            case "gpt2":
                return gpt2_tokenizer()
            case "bpe":
                return self._trained(texts, progress)
            case "bytes":
                return byte_tokenizer()
        if not self.kind.endswith(".json"):
            raise ConfigError(f"tokenizer {self.kind!r} is unknown: gpt2, bpe, bytes, or the path of a tokenizer.json")
        if not Path(self.kind).is_file():
            raise ConfigError(
                f"tokenizer {self.kind}: no such file; a data folder and a checkpoint each have a tokenizer.json"
            )
        return load_tokenizer(Path(self.kind))

    def _trained(self, texts: Iterable[str], progress: Progress | None) -> AnyTokenizer:
        if self.vocab_size != "auto":
            return train_bpe(texts, self.vocab_size, progress, specials=self.specials)
        from smallgpt.domain.config import GPTConfig  # takes a fifth of a second
        from smallgpt.infrastructure.vocabulary_sizes import suggest_vocab_size

        table = suggest_vocab_size(texts, self.model or GPTConfig(), progress, specials=self.specials)
        if self.tell_sizes:
            self.tell_sizes(table)
        return table.tokenizer


@dataclass(frozen=True)
class TrainingTexts:
    """What an own BPE is trained on: documents from all over the corpus, none of those that are held out."""

    parts: tuple[Part, ...]
    held_out: HeldOut | None

    def __iter__(self) -> Iterator[str]:
        for text in Documents(training_parts(self.parts)):
            share = self.held_out.parts(text)[0] if self.held_out else text
            if share.strip():
                yield share

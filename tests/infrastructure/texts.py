"""Corpora in memory, and data folders of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smallgpt.infrastructure.corpora.parts import Corpus
from smallgpt.infrastructure.manifest import Manifest
from smallgpt.infrastructure.tokenizing.choosing import TokenizerChoice
from smallgpt.infrastructure.tokenizing.making import Options, make_data_folder


@dataclass(frozen=True)
class Texts:
    """A part in memory."""

    texts: tuple[str, ...]
    name: str = "texts"
    interrupted: bool = False

    @property
    def size(self) -> int:
        return sum(map(len, self.texts))

    def documents(self) -> Iterator[str]:
        yield from self.texts
        if self.interrupted:
            raise KeyboardInterrupt


def write_texts(
    train: Sequence[str], validation: Sequence[str], out: Path, tokenizer: str = "bytes", name: str = "test"
) -> Manifest:
    """A data folder of texts."""
    corpus = Corpus(name, (Texts(tuple(train)),), (Texts(tuple(validation)),))
    return make_data_folder(corpus, out, Options(TokenizerChoice(tokenizer, 300)))

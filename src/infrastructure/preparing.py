"""Making a data folder: from the demo grammar, the hub, local files, or token files that exist already."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.corpora import demo
from smallgpt.infrastructure.corpora.hub import TINYSTORIES, hub_documents
from smallgpt.infrastructure.corpora.local_text import DEFAULT_SEPARATOR, read_documents
from smallgpt.infrastructure.corpora.splitting import split_documents
from smallgpt.infrastructure.data_folder import check_target, count_baselines, data_folder, describe, write_data_folder
from smallgpt.infrastructure.files import sha256
from smallgpt.infrastructure.manifest import FILE_NAME, Manifest, SplitFacts, TokenFile
from smallgpt.infrastructure.token_store import Tokens, highest_id
from smallgpt.infrastructure.tokenizers import (
    Progress,
    Tokenizer,
    byte_tokenizer,
    gpt2_tokenizer,
    load_tokenizer,
    train_bpe,
)

GPT2_IDS = 50257
_AT_ONCE = 2**24


def prepare_demo(
    out: Path,
    *,
    tokenizer: str = "bpe",
    vocab_size: int = 2048,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """The embedded corpus: stories from a grammar, the same ones everywhere. Options as in `prepare_text`."""
    check_target(out, overwrite)
    train, validation = demo.split()
    made = make_tokenizer(tokenizer, train, vocab_size, progress)
    return write_data_folder(out, train, validation, made, "demo", overwrite=overwrite, progress=progress)


def prepare_hub(
    name: str,
    out: Path,
    *,
    tokenizer: str = "gpt2",
    vocab_size: int = 2048,
    column: str = "text",
    config: str | None = None,
    validation_share: float = 0.05,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """A Hugging Face dataset by name ("tinystories" for short), or a local folder in hub layout."""
    check_target(out, overwrite)
    name = TINYSTORIES if name == "tinystories" else name
    if progress:
        progress(0, None, f"loading {name}")
    train, validation = hub_documents(name, column=column, config=config, validation_share=validation_share)
    made = make_tokenizer(tokenizer, train, vocab_size, progress)
    source = Path(name).name if Path(name).is_dir() else name
    return write_data_folder(out, train, validation, made, source, overwrite=overwrite, progress=progress)


def prepare_text(
    files: Sequence[Path],
    out: Path,
    *,
    tokenizer: str = "bpe",
    vocab_size: int = 2048,
    separator: str = DEFAULT_SEPARATOR,
    field: str = "text",
    encoding: str | None = None,
    validation_share: float = 0.05,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Local files and folders (`local_text.LocalText` says which kinds and what the options mean).

    tokenizer is gpt2, bpe (trained on this text, vocab_size ids), bytes, or the path of a tokenizer.json.
    progress is told (done, total or None, what). Raises DataError for unusable input, an existing `out` (unless
    overwrite, which replaces a data folder and nothing else), and a disk that is full or cannot be written.
    """
    check_target(out, overwrite)
    source = ", ".join(path.name for path in files)
    documents = read_documents(files, separator=separator, field=field, encoding=encoding)
    train, validation = split_documents(documents, validation_share, source)
    made = make_tokenizer(tokenizer, train, vocab_size, progress)
    return write_data_folder(out, train, validation, made, source, overwrite=overwrite, progress=progress)


def make_tokenizer(choice: str, texts: Iterable[str], vocab_size: int, progress: Progress | None = None) -> Tokenizer:
    """The tokenizer behind gpt2, bpe (trained on texts), bytes, or the path of a tokenizer.json."""
    match choice:
        case "gpt2":
            return gpt2_tokenizer()
        case "bpe":
            return train_bpe(texts, vocab_size, progress)
        case "bytes":
            return byte_tokenizer()
    if choice.endswith(".json"):
        if not Path(choice).is_file():
            raise ConfigError(
                f"tokenizer {choice}: no such file; a data folder and a checkpoint each have a tokenizer.json"
            )
        return load_tokenizer(Path(choice))
    raise ConfigError(f"tokenizer {choice!r} is unknown: gpt2, bpe, bytes, or the path of a tokenizer.json")


def adopt_bins(
    folder: Path,
    out: Path,
    *,
    tokenizer: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Adopt the uint16 files `train.bin` and `val.bin` or `validation.bin` of nanoGPT or the seed, as links or copies.

    tokenizer is as in `prepare_text` (but not bpe), none, or auto: a tokenizer.json beside the files, else none when
    a `meta.pkl` says that the ids are characters, else gpt2 when every id fits it, else none.
    """
    check_target(out, overwrite)
    sources: dict[Literal["train", "validation"], Path] = {
        "train": _existing(folder, "train.bin"),
        "validation": _existing(folder, "validation.bin", "val.bin"),
    }
    tokens = {split: _mapped(path) for split, path in sources.items()}
    highest = max(highest_id(ids) for ids in tokens.values())
    known = _adopted_tokenizer(tokenizer, folder, highest)
    if known is not None and highest >= known.vocab_size:
        raise DataError(
            f"{folder}: token id {highest}, but the {known.name} tokenizer has {known.vocab_size} ids; "
            "name the right one, or --tokenizer none"
        )
    vocab_size = known.vocab_size if known else highest + 1
    with data_folder(out, overwrite) as draft:
        if known is not None:
            known.save(draft / "tokenizer.json")
        splits: dict[Literal["train", "validation"], SplitFacts] = {}
        for split, path in sources.items():
            if progress:
                progress(len(splits), len(sources), "token files adopted")
            _link(path, draft / f"{split}.bin")
            splits[split] = _adopted_facts(f"{split}.bin", tokens[split], known, sha256(path))
        manifest = Manifest(
            dtype="uint16",
            vocab_size=vocab_size,
            tokenizer=describe(known) if known else None,
            source=f"token files {folder.name}",
            splits=splits,
            baselines=count_baselines(draft, splits, "uint16", vocab_size, progress),
        )
        manifest.save(draft)
    return manifest


def _existing(folder: Path, *names: str) -> Path:
    """The first of these files that the folder has."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if (folder / FILE_NAME).exists():
        raise DataError(f"{folder} is a data folder already; train on it with --data {folder}")
    raise DataError(f"{folder}: no {' or '.join(names)}; a folder of token files has train.bin and validation.bin")


def _mapped(path: Path) -> Tokens:
    """The ids of a raw uint16 file."""
    size = path.stat().st_size
    if size % 2 or size == 0:
        raise DataError(f"{path}: {size} bytes are not a whole number of 16-bit tokens; make the file again")
    return np.memmap(path, dtype="<u2", mode="r")


def _adopted_tokenizer(choice: str, folder: Path, highest: int) -> Tokenizer | None:
    if choice == "auto":
        if (folder / "tokenizer.json").exists():
            return load_tokenizer(folder / "tokenizer.json")
        choice = "none" if (folder / "meta.pkl").exists() or highest >= GPT2_IDS else "gpt2"
    if choice == "bpe":
        raise ConfigError("an own BPE cannot be trained on token files; name gpt2, bytes, none or a tokenizer.json")
    return None if choice == "none" else make_tokenizer(choice, (), 0)


def _adopted_facts(name: str, tokens: Tokens, tokenizer: Tokenizer | None, digest: str) -> SplitFacts:
    """What a token file tells: with a tokenizer its text bytes, and with end-of-text its documents too."""
    text_bytes = None
    documents: list[int] = []
    if tokenizer is not None:
        lengths = tokenizer.byte_lengths()
        text_bytes = sum(int(lengths[tokens[at : at + _AT_ONCE]].sum()) for at in _parts(tokens))
        documents = [] if tokenizer.end_of_text is None else _document_lengths(tokens, tokenizer.end_of_text)
    return SplitFacts(
        files=(TokenFile(name=name, tokens=len(tokens), sha256=digest),),
        tokens=len(tokens),
        sha256=digest,
        highest_id=highest_id(tokens),
        documents=len(documents) or None,
        starts=None,
        text_bytes=text_bytes,
        longest_document=max(documents, default=None),
    )


def _document_lengths(tokens: Tokens, end_of_text: int) -> list[int]:
    """Tokens of each document that has any; none at all when no end-of-text separates them."""
    ends = [np.flatnonzero(tokens[at : at + _AT_ONCE] == end_of_text) + at for at in _parts(tokens)]
    borders = np.concatenate([[-1], *ends, [len(tokens)]])
    lengths = np.diff(borders) - 1
    return [] if len(borders) == 2 else lengths[lengths > 0].tolist()


def _parts(tokens: Tokens) -> range:
    return range(0, len(tokens), _AT_ONCE)


def _link(path: Path, target: Path) -> None:
    """The same file under a second name, or a copy on another disk."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)

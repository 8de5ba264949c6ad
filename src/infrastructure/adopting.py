"""Making a data folder of token files that exist already."""

import os
import shutil
from pathlib import Path
from typing import Literal

import numpy as np

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.data_folder import check_target, count_baselines, data_folder, describe
from smallgpt.infrastructure.files import sha256
from smallgpt.infrastructure.formats.character_tables import META, read_characters
from smallgpt.infrastructure.manifest import FILE_NAME, Manifest, SplitFacts, TokenFile
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.tokenizers import GPT2_IDS, AnyTokenizer, load_tokenizer
from smallgpt.infrastructure.tokenizing.naming import named_tokenizer
from smallgpt.infrastructure.tokens import Ids, Places, highest_id, mapped

MOST_IDS = 2**22  # no vocabulary is larger
_AT_ONCE = 2**24


def adopt_bins(
    folder: Path,
    out: Path,
    *,
    tokenizer: str = "auto",
    dtype: Literal["uint16", "uint32"] = "uint16",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Adopt the token files `train.bin` and `val.bin` or `validation.bin` of nanoGPT or the seed, as links or copies.

    tokenizer is as in `naming.named_tokenizer`, or auto: a tokenizer.json beside the files, else the characters of a
    meta.pkl beside them, else gpt2 when every id fits it, else none.
    """
    check_target(out, overwrite, [folder])
    sources: dict[Literal["train", "validation"], Path] = {
        "train": _existing(folder, "train.bin"),
        "validation": _existing(folder, "validation.bin", "val.bin"),
    }
    tokens = {split: _mapped(path, dtype) for split, path in sources.items()}
    highest = max(highest_id(ids) for ids in tokens.values())
    if highest >= MOST_IDS:
        raise DataError(f"{folder}: token id {highest}; no vocabulary is that large: leave --dtype {dtype} out")
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
            splits[split] = _adopted_facts(draft, split, tokens[split], known, sha256(path))
        manifest = Manifest(
            dtype=dtype,
            vocab_size=vocab_size,
            tokenizer=describe(known) if known else None,
            source=f"token files {folder.name}",
            splits=splits,
            baselines=count_baselines(draft, splits, dtype, vocab_size, progress),
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


def _mapped(path: Path, dtype: Literal["uint16", "uint32"]) -> Ids:
    """The ids of a raw file. Raises DataError when their type is plainly another one."""
    size, item_size = path.stat().st_size, np.dtype(dtype).itemsize
    if size % item_size or size == 0:
        raise DataError(
            f"{path}: {size} bytes are not a whole number of {8 * item_size}-bit tokens; make the file again"
        )
    ids = mapped(path, dtype)
    if dtype == "uint16" and _are_halves(ids[:_AT_ONCE]):
        raise DataError(
            f"{path}: every second 16-bit id is 0 or next to it, so these are 32-bit ids; adopt them with --dtype uint32"
        )
    return ids


def _are_halves(ids: Ids) -> bool:
    """Whether 16-bit numbers are the halves of 32-bit ids: the high ones are small and most of them 0, the low ones not."""
    low, high = ids[::2], ids[1::2]
    if len(low) != len(high) or int(high.max()) >= MOST_IDS >> 16:
        return False
    return bool((high == 0).mean() > 0.5 and (low == 0).mean() < 0.5)


def _adopted_tokenizer(choice: str, folder: Path, highest: int) -> AnyTokenizer | None:
    if choice == "auto":
        if (folder / "tokenizer.json").exists():
            return load_tokenizer(folder / "tokenizer.json")
        if (folder / META).exists():
            return read_characters(folder / META)
        choice = "none" if highest >= GPT2_IDS else "gpt2"
    return named_tokenizer(choice)


def _adopted_facts(
    draft: Path, split: Literal["train", "validation"], tokens: Ids, tokenizer: AnyTokenizer | None, digest: str
) -> SplitFacts:
    """What a token file tells: with a tokenizer its text bytes, and with end-of-text its documents too.

    Where the documents start is written beside it.
    """
    text_bytes = None
    starts = lengths = np.empty(0, dtype=np.int64)
    if tokenizer is not None:
        lengths = tokenizer.byte_lengths()
        text_bytes = sum(int(lengths[tokens[at : at + _AT_ONCE]].sum()) for at in _parts(tokens))
        if tokenizer.end_of_text is not None:
            starts, lengths = _documents(tokens, tokenizer.end_of_text)
    if len(starts):
        np.save(draft / f"{split}.starts.npy", starts)
    return SplitFacts(
        files=(TokenFile(name=f"{split}.bin", tokens=len(tokens), sha256=digest),),
        tokens=len(tokens),
        sha256=digest,
        highest_id=highest_id(tokens),
        documents=len(starts) or None,
        starts=f"{split}.starts.npy" if len(starts) else None,
        text_bytes=text_bytes,
        longest_document=int(lengths.max()) if len(lengths) else None,
    )


def _documents(tokens: Ids, end_of_text: int) -> tuple[Places, Places]:
    """Start and length of each document that has tokens; none at all when no end-of-text separates them."""
    ends = [np.flatnonzero(tokens[at : at + _AT_ONCE] == end_of_text) + at for at in _parts(tokens)]
    borders = np.concatenate([[-1], *ends, [len(tokens)]])
    starts, lengths = borders[:-1] + 1, np.diff(borders) - 1
    kept = (lengths > 0) & (len(borders) > 2)
    return starts[kept], lengths[kept]


def _parts(tokens: Ids) -> range:
    return range(0, len(tokens), _AT_ONCE)


def _link(path: Path, target: Path) -> None:
    """The same file under a second name, or a copy on another disk."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)

"""`smallgpt prepare card DIR`: what a data folder holds, counted, in words and with a picture, written into it."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING

from smallgpt.interfaces.cli.flags import Json, Switch

if TYPE_CHECKING:
    from smallgpt.infrastructure.card import Card, LengthsArray, Split
    from smallgpt.infrastructure.card_words import Excerpt
    from smallgpt.infrastructure.cleaning.documents import DocumentTokens
    from smallgpt.infrastructure.cleaning.duplicates import Duplicates, Place
    from smallgpt.infrastructure.progress import Progress
    from smallgpt.infrastructure.token_store import TokenStore

_EXCERPT_TOKENS = 24
_SPLITS: "tuple[Split, ...]" = ("train", "validation")


def card(
    folder: Path,
    /,
    *,
    near_duplicates: Switch = False,
    contamination: Switch = False,
    json: Json = False,
) -> None:
    """Count what a data folder holds: documents, lengths, vocabulary, copies. Writes dataset.md and lengths.png into it.

    Try:
      smallgpt prepare card data/demo
      smallgpt prepare card data/mine --near-duplicates --contamination

    Args:
        folder: A data folder.
        near_duplicates: Look for documents that are almost the same too; tens of thousands of documents a second.
        contamination: Look for validation text in training too; millions of tokens a second.
        json: Print the facts as a JSON object instead.
    """
    from rich.console import Console

    from smallgpt.domain.errors import DataError
    from smallgpt.infrastructure.card import BLOCK_SIZES
    from smallgpt.infrastructure.card_words import FILE_NAME, PICTURE, markdown
    from smallgpt.infrastructure.files import write_atomically
    from smallgpt.infrastructure.token_store import open_store
    from smallgpt.interfaces.card_plot import plot
    from smallgpt.interfaces.cli.progress import shown

    store = open_store(folder)
    with shown(Console(stderr=True)) as progress:
        try:
            found, lengths = _look(store, near_duplicates, contamination, progress)
            text = markdown(found, _excerpts(store))
            if lengths:
                plot(lengths, BLOCK_SIZES, folder / PICTURE)
            write_atomically(folder / FILE_NAME, text)
        except OSError as error:
            remedy = "free some space, or give a copy of the folder that can be written"
            raise DataError(f"{folder}: the card cannot be written ({error.strerror or error}); {remedy}") from error
    print(json_format.dumps(found.as_dict(), indent=2) if json else _words(found, folder, bool(lengths)))


def _look(
    store: "TokenStore", near: bool, contaminated: bool, progress: "Progress"
) -> "tuple[Card, dict[Split, LengthsArray]]":
    """The card, and the lengths (documents,) of each split whose documents are known."""
    from tempfile import TemporaryDirectory

    from smallgpt.domain.errors import DataError
    from smallgpt.infrastructure.card import Card, describe_coverage, describe_split, document_lengths
    from smallgpt.infrastructure.cleaning.contamination import contamination
    from smallgpt.infrastructure.cleaning.duplicates import exact_duplicates
    from smallgpt.infrastructure.cleaning.near_duplicates import near_duplicates

    documents = {name: found for name in _SPLITS if (found := _documents(store, name))}
    if (near or contaminated) and len(documents) < len(_SPLITS):
        raise DataError(
            f"{store.folders[0].path}: its files do not tell where documents begin, so copies cannot be looked for"
        )
    progress(0, None, "counting ids")
    lengths = {name: document_lengths(each) for name, each in documents.items()}
    coverage = describe_coverage(store.tokens("train"), store.tokens("validation"), store.vocab_size)
    exact = similar = seen = None
    if len(documents) == len(_SPLITS):
        train, validation = documents["train"], documents["validation"]
        progress(0, None, "looking for equal documents")
        exact = exact_duplicates(train, validation)
        if near:
            progress(0, None, "looking for near copies")
            with TemporaryDirectory(prefix=".near-", dir=store.folders[0].path) as work:
                similar = near_duplicates(train, validation, Path(work), exact=exact)
        if contaminated:
            progress(0, None, "looking for validation text in training")
            seen = contamination(train, validation)
    splits = {name: describe_split(store.manifest, name, lengths.get(name)) for name in _SPLITS}
    return Card(store.manifest, splits, coverage, exact, similar, seen), lengths


def _documents(store: "TokenStore", split: "Split") -> "DocumentTokens | None":
    """A split's documents; None where the manifest does not tell where they begin."""
    from smallgpt.infrastructure.cleaning.documents import one_stream

    (folder,) = store.folders
    if folder.facts(split).starts is None:
        return None
    return one_stream(store.tokens(split), folder.starts(split), store.end_of_text)


def _excerpts(store: "TokenStore") -> "Excerpt":
    """Shows how a document begins."""

    def excerpt(place: "Place") -> str:
        split, number = place
        documents = _documents(store, split)
        if documents is None or store.tokenizer is None:
            return ""
        (piece,) = documents.pieces
        start = int(piece.starts[number])
        end = int(piece.starts[number + 1]) if number + 1 < len(piece.starts) else len(piece.tokens)
        ids = piece.tokens[start : min(end, start + _EXCERPT_TOKENS)].tolist()
        return store.tokenizer.decode([each for each in ids if each != store.end_of_text])

    return excerpt


def _words(found: "Card", folder: Path, pictured: bool) -> str:
    from smallgpt.infrastructure.card_words import FILE_NAME, PICTURE
    from smallgpt.interfaces.cli.display import size

    lines = [f"{folder}: {found.manifest.source}"]
    for name, split in found.splits.items():
        documents = "" if split.documents is None else f" in {split.documents:,} documents"
        text = "" if split.text_bytes is None else f", {size(split.text_bytes)} of text"
        lines.append(f"  {name:12}{split.tokens:,} tokens{documents}{text}")
    lengths = found.splits["train"].lengths
    if lengths:
        lines.append(
            f"  lengths     median {lengths.median:,}, 99 % at most {lengths.p99:,}, longest {lengths.longest:,} tokens"
        )
    ids = found.coverage
    lines.append(
        f"  vocabulary  {ids.used:,} of {found.manifest.vocab_size:,} ids in training, {ids.for_99_percent:,} make 99 %"
    )
    if found.exact:
        lines.append(f"  equal       {_removals(found.exact)}")
    if found.near:
        lines.append(f"  near        {_removals(found.near)}")
    if found.contamination:
        seen = found.contamination
        lines.append(
            f"  seen        {100 * seen.share:.2f} % of validation's runs of {seen.n} tokens are in training; "
            f"{seen.documents_above(0.5):,} of {seen.checked:,} documents by half or more"
        )
    return "\n".join([*lines, f"wrote {folder / FILE_NAME}" + (f" and {PICTURE}" if pictured else "")])


def _removals(found: "Duplicates") -> str:
    return (
        f"{found.train:,} training documents repeat one, {found.across:,} are in validation; "
        f"{found.validation:,} validation documents repeat one"
    )

"""A model by its name on the Hugging Face hub: what is needed of it, fetched into the hub's cache."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.infrastructure.corpora import fetching
from smallgpt.infrastructure.corpora.fetching import HubFile, Listing, UnreachableError
from smallgpt.infrastructure.corpora.hub_kinds import MODEL
from smallgpt.infrastructure.formats import hugging_face_tokenizer, hugging_face_weights
from smallgpt.infrastructure.formats.configs import read_json
from smallgpt.infrastructure.formats.hugging_face_config import read_config

if TYPE_CHECKING:
    from smallgpt.infrastructure.progress import Progress

CONFIG = "config.json"
KNOWN = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
"""Names without an owner that people use."""
FILES = (".pt", ".pth", ".bin", ".pkl", ".json", ".safetensors", ".gguf", ".onnx")
"""How names end that are meant to be files here."""


def local_path(source: str, revision: str | None = None, progress: "Progress | None" = None) -> Path:
    """A path as it is, or a name on the hub as the folder of the cache with its files at a commit (None: of "main").

    Raises ConfigError for a path with a revision, CheckpointError for what is neither, cannot be reached or found, or is
    no GPT-2.
    """
    if Path(source).exists():
        if revision is not None:
            raise ConfigError(
                f"--revision {revision} is for a model on the hub, but {source} is a path of this machine"
            )
        return Path(source)
    name = KNOWN.get(source, source)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) or Path(name).suffix in FILES:
        raise CheckpointError(f"{source} is not there; give a path, or OWNER/NAME of a model on the hub")
    listing = _listing(name, revision, progress)
    try:
        return _fetched(listing, progress)
    except UnreachableError as error:
        raise CheckpointError(_unreachable(name, error)) from error


def _listing(name: str, revision: str | None, progress: "Progress | None") -> Listing:
    """What the hub lists, or what it listed when it could be reached and all that is needed came into the cache."""
    try:
        if not fetching.hub_answers():
            raise UnreachableError("the hub cannot be reached")
        return fetching.fetch_listing(name, revision, progress, MODEL)
    except UnreachableError as error:
        listing = fetching.cached_listing(name, revision, MODEL)
        if listing is None or not _is_cached(listing):
            raise CheckpointError(_unreachable(name, error)) from error
        if progress:
            progress(0, None, f"the hub cannot be reached, using {name} at {listing.commit[:12]} in the cache")
        return listing


def _fetched(listing: Listing, progress: "Progress | None") -> Path:
    """The folder with all that is needed; a model of another kind is refused before its weights come."""
    (config,) = _files(listing, [CONFIG], progress)
    read_config(read_json(config), f"{listing.name}, {CONFIG}")
    for path in _files(listing, _needed(listing), progress):
        if path.name.endswith(hugging_face_weights.INDEX):
            _files(listing, hugging_face_weights.shards(path), progress)
    return config.parent


def _files(listing: Listing, names: Iterable[str], progress: "Progress | None") -> list[Path]:
    """Files of these names in the cache; nothing is said where they are there already."""
    files = _listed(listing, names)
    there = all(fetching.cached(listing, file) for file in files)
    return fetching.fetch_files(listing, files, None if there else progress)


def _needed(listing: Listing) -> list[str]:
    """Weights, or the index of their parts, and the tokenizer."""
    there = {file.path for file in listing.files}
    weights = next((name for name in hugging_face_weights.NAMES if name in there), None)
    if weights is None:
        raise CheckpointError(f"{listing.name} has no weights: none of {', '.join(hugging_face_weights.NAMES)}")
    whole, *pair = hugging_face_tokenizer.NAMES
    return [weights, *(name for name in ([whole] if whole in there else pair) if name in there)]


def _listed(listing: Listing, names: Iterable[str]) -> list[HubFile]:
    """The listed files of these names. Raises CheckpointError for one that is not."""
    files = {file.path: file for file in listing.files}
    missing = [name for name in names if name not in files]
    if missing:
        raise CheckpointError(f"{listing.name} has no {missing[0]}, so it is no complete model of transformers")
    return [files[name] for name in names]


def _is_cached(listing: Listing) -> bool:
    paths = [fetching.cached(listing, file) for file in _listed(listing, [CONFIG, *_needed(listing)])]
    indexes = [path for path in paths if path and path.name.endswith(hugging_face_weights.INDEX)]
    parts = [part for index in indexes for part in _listed(listing, hugging_face_weights.shards(index))]
    return all(paths) and all(fetching.cached(listing, part) for part in parts)


def _unreachable(name: str, error: UnreachableError) -> str:
    from huggingface_hub import constants

    return (
        f"{name} is no path here, and on the hub ({constants.ENDPOINT}) it is not to be had: {error};\n"
        f"give a folder of this machine, fill the cache elsewhere and set HF_HUB_OFFLINE=1, or name a mirror in HF_ENDPOINT"
    )

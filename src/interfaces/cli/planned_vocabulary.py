"""How many rows the embedding of a run will have, as far as that can be told before its data is there. Loads no torch."""

from typing import NamedTuple

from smallgpt.domain.config import RunConfig, padded_vocabulary
from smallgpt.infrastructure.manifest import FILE_NAME, read_manifest
from smallgpt.interfaces.cli.preparing import corpus_folder

IDS = {"gpt2": 50_257, "bytes": 257}
"""Token ids of tokenizers that are the same for every corpus."""


class Vocabulary(NamedTuple):
    """Rows of the embedding, and what says so."""

    rows: int
    source: str
    assumed: bool = False
    """Does nothing say so?"""


def planned_vocabulary(run: RunConfig) -> Vocabulary:
    """model.vocab_size if given; else as training pads it: that of data folders that are here, or of the tokenizer to come.

    Raises DataError for a dataset.json that cannot be read.
    """
    if "vocab_size" in run.model.model_fields_set:
        return Vocabulary(run.model.vocab_size, "model.vocab_size")
    data = run.data
    folders = data.folders or (() if data.corpus is None else (corpus_folder(data),))
    here = [folder for folder in folders if not isinstance(folder, str) and (folder / FILE_NAME).is_file()]
    if here and len(here) == len(folders):
        ids, where = max(read_manifest(folder).vocab_size for folder in here), " + ".join(map(str, here))
    elif not data.folders and (data.corpus is not None or "tokenizer" in data.model_fields_set):
        ids, where = IDS.get(data.tokenizer, data.vocab_size), f"data.tokenizer {data.tokenizer}"
    else:
        return Vocabulary(run.model.vocab_size, "assumed", assumed=True)
    return Vocabulary(padded_vocabulary(ids), f"{ids:,} ids of {where}, padded")

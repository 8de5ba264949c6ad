"""`smallgpt prepare tokenizers`: which tokenizer a text and a model want, before anything is prepared."""

import sys
from dataclasses import asdict
from json import dumps
from pathlib import Path

from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces.cli.flags import Json, Whole
from smallgpt.interfaces.cli.preparing import BLOCK_SIZE, N_EMBD, N_LAYER


def tokenizers(
    *paths: Path,
    n_layer: Whole = N_LAYER,
    n_embd: Whole = N_EMBD,
    block_size: Whole = BLOCK_SIZE,
    separator: str = "<|endoftext|>",
    field: str = "text",
    encoding: str | None = None,
    json: Json = False,
) -> None:
    """Compare tokenizers on own text, for a model of some size.

    GPT-2's, the same trimmed to the ids that occur, own BPEs of several sizes,
    and bytes, on 100 million characters at most. A star marks the size that an
    own BPE should have: the least work for a byte of text, with ids that occur
    often enough to be learned.

    Try:
      smallgpt prepare tokenizers book.txt
      smallgpt prepare tokenizers stories.parquet --n-layer 12 --n-embd 768

    Args:
        paths: Files and folders, as for `prepare text`.
        n_layer: Blocks of the model.
        n_embd: Its width.
        block_size: Its context.
        separator: Line of a .txt file that ends a document; "" stands for a blank line.
        field: Field of a .jsonl object or column of a .parquet table that holds the text.
        encoding: Of .txt and .jsonl files; by default what the file says, else UTF-8.
        json: Print a JSON list instead: tokenizer, vocab_size, ids_used, typical_count, bytes_per_token,
            head_parameters, parameters_saved, head_share, flops_per_byte, suggested.
    """
    from rich.console import Console

    from smallgpt.domain.config import GPTConfig
    from smallgpt.infrastructure.corpora.parts import Documents
    from smallgpt.infrastructure.corpora.planning import ReadOptions, plan_files
    from smallgpt.infrastructure.vocabulary_sizes import compare_tokenizers
    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.interfaces.cli.vocabulary_table import is_chosen, vocabulary_table

    if not paths:
        raise ConfigError("name the files or folders to read: smallgpt prepare tokenizers book.txt")
    for name, value in (("n-layer", n_layer), ("n-embd", n_embd), ("block-size", block_size)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}; a model has 1 or more")
    model = GPTConfig(n_layer=n_layer, n_head=1, n_embd=n_embd, block_size=block_size)
    documents = Documents(plan_files(paths, ReadOptions(separator, field, encoding)))
    with shown(Console(stderr=True)) as progress:
        rows, chosen, missing = compare_tokenizers(documents, model, progress)
    if json:
        print(dumps([asdict(row) | {"suggested": is_chosen(row, chosen)} for row in rows], indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(vocabulary_table(rows, chosen))
        print(f"for n_layer {n_layer}, n_embd {n_embd}, block_size {block_size}; saved: parameters, against gpt2")
        print(f"* is the size to take for an own BPE: --tokenizer bpe --vocab-size {chosen}")
    if missing:
        print(f"gpt2 is left out: {missing}", file=sys.stderr)

"""What tokenizers cost on a corpus and a model, as `smallgpt prepare tokenizers` and `--vocab-size auto` show it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from smallgpt.infrastructure.vocabulary_sizes import VocabularyFacts


def vocabulary_table(rows: "Iterable[VocabularyFacts]", chosen: int) -> Table:
    """A line a vocabulary; the own BPE of the chosen size has a star."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("tokenizer", no_wrap=True)
    headers = "ids", "used", "median count", "bytes/token", "embedding", "saved", "head", "FLOPs/byte"
    for name in headers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{'* ' if is_chosen(row, chosen) else '  '}{row.tokenizer}",
            f"{row.vocab_size:,}",
            f"{row.ids_used:,}",
            f"{row.typical_count:,}",
            f"{row.bytes_per_token:.2f}",
            _millions(row.head_parameters),
            _millions(row.parameters_saved),
            f"{row.head_share:.0%}",
            _millions(row.flops_per_byte),
        )
    return table


def is_chosen(row: "VocabularyFacts", chosen: int) -> bool:
    return row.tokenizer == "bpe" and row.vocab_size == chosen


def _millions(number: float) -> str:
    return f"{number / 1e6:,.2f} M"

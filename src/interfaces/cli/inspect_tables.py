"""An inspection as tables for people, and as a dictionary for programs."""

import sys
from collections.abc import Iterator, Sequence
from json import dumps
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smallgpt.interfaces.cli.terminal import harmless

if TYPE_CHECKING:
    from smallgpt.application.inspection import Inspection, Likeliest
    from smallgpt.interfaces.library import LanguageModel


def as_dict(inspection: "Inspection", model: "LanguageModel", ids: Sequence[int]) -> dict[str, Any]:
    """For a program to read; probabilities and shares between 0 and 1, entropies in bits."""

    def named(likeliest: "Likeliest") -> list[dict[str, Any]]:
        return [{"id": id, "token": model.decode([id]), "probability": share} for id, share in likeliest]

    rows = zip(ids, inspection.given, inspection.next, strict=True)
    places = zip(_places(inspection), inspection.norms, inspection.lens, strict=True)
    return {
        "model": str(model.path),
        "tokens": [
            {"id": id, "token": model.decode([id]), "probability": given, "next": named(likeliest)}
            for id, given, likeliest in rows
        ],
        "at": inspection.at,
        "lens": [{"after": place, "norm": norm, "next": named(likeliest)} for place, norm, likeliest in places],
        "heads": [
            {
                "layer": head.layer,
                "head": head.head,
                "entropy": head.entropy,
                "first": head.first,
                "previous": head.previous,
                "itself": head.itself,
                "most": [{"position": at, "token": model.decode([ids[at]]), "share": share} for at, share in head.most],
            }
            for head in inspection.heads
        ],
    }


def tables(inspection: "Inspection", model: "LanguageModel", ids: Sequence[int]) -> None:
    """Print them."""
    config = model.config
    console = Console(width=None if sys.stdout.isatty() else 120)
    shown = {id: dumps(harmless(model.decode([id])), ensure_ascii=False) for id in ids}

    def listed(likeliest: "Likeliest") -> str:
        names = ((dumps(harmless(model.decode([id])), ensure_ascii=False), share) for id, share in likeliest)
        return "  ".join(f"{name} {share:.1%}" for name, share in names)

    def show(title: str, headings: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
        print(title)
        table = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)

    print(f"model {model.path}: {config.n_layer} blocks of {config.n_head} heads, width {config.n_embd}")
    print(f"{len(ids)} of at most {config.block_size} tokens\n")
    given = ("" if share is None else f"{share:.1%}" for share in inspection.given)
    each = zip(ids, given, inspection.next, strict=True)
    show(
        "What follows: the probability that each token had, and what is likeliest after it",
        ("at", "id", "token", "had", "likeliest next"),
        ((str(at), str(id), shown[id], had, listed(best)) for at, (id, had, best) in enumerate(each)),
    )
    token = f"token {inspection.at}, {shown[ids[inspection.at]]}"
    places = zip(_places(inspection), inspection.norms, inspection.lens, strict=True)
    show(
        f"Logit lens: what would follow {token}, if the model ended there",
        ("after", "stream's norm", "likeliest next"),
        ((place, f"{norm:.1f}", listed(best)) for place, norm, best in places),
    )
    show(
        f"Attention: shares on average, and where {token}, looks",
        ("head", "first", "previous", "itself", "entropy", "looks at"),
        (
            (
                f"{head.layer}.{head.head}",
                *(f"{share:.0%}" for share in (head.first, head.previous, head.itself)),
                f"{head.entropy:.1f} bits",
                "  ".join(f"{at} {shown[ids[at]]} {share:.0%}" for at, share in head.most),
            )
            for head in inspection.heads
        ),
    )


def _places(inspection: "Inspection") -> list[str]:
    return ["embedding", *(f"block {layer}" for layer in range(len(inspection.lens) - 1))]

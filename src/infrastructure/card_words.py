"""`dataset.md`: the statistics card in words and tables."""

from collections.abc import Callable, Iterator, Sequence

from smallgpt.infrastructure.card import Card, Lengths
from smallgpt.infrastructure.cleaning.contamination import Contamination
from smallgpt.infrastructure.cleaning.duplicates import Duplicates, Place

FILE_NAME = "dataset.md"
PICTURE = "lengths.png"
Excerpt = Callable[[Place], str]
"""The first words of a document, on one line."""


def markdown(card: Card, excerpt: Excerpt) -> str:
    """The whole card; PICTURE is expected beside it where lengths are known."""
    facts = card.manifest
    tokenizer = f"the {facts.tokenizer.kind} tokenizer" if facts.tokenizer else "an unknown tokenizer"
    revision = f", revision {facts.revision}" if facts.revision else ""
    parts = [
        f"# {facts.source}\n\nText from {facts.source}{revision}, as ids of {tokenizer} ({facts.vocab_size:,} ids). "
        "`smallgpt prepare card DIR` counted what is below from the token files.",
        _splits(card),
        *_lengths(card),
        _vocabulary(card),
        *_baselines(card),
        _copies(card, excerpt),
        _contamination(card.contamination, excerpt),
    ]
    return "\n\n".join(parts) + "\n"


def _splits(card: Card) -> str:
    splits = card.splits.values()
    rows = [
        ["documents", *(_number(split.documents) for split in splits)],
        ["tokens, end-of-text included", *(_number(split.tokens) for split in splits)],
        ["bytes of text", *(_number(split.text_bytes) for split in splits)],
        ["bytes per token", *(_number(split.bytes_per_token) for split in splits)],
    ]
    share = card.splits["validation"].tokens / sum(split.tokens for split in splits)
    return (
        f"## Splits\n\n{_table(['', *card.splits], rows)}\n\nValidation has {_share(share)} of the tokens. It is the "
        "corpus's own validation split where there is one; otherwise documents were held out by a hash of their text, so "
        "that equal documents fall on the same side."
    )


def _lengths(card: Card) -> Iterator[str]:
    known = {name: split.lengths for name, split in card.splits.items() if split.lengths}
    if not known:
        yield "## Lengths\n\nNot known: the files do not tell where documents begin."
        return

    def row(name: str, value: Callable[[Lengths], float]) -> list[str]:
        return [name, *(_number(value(lengths)) for lengths in known.values())]

    rows = [
        row("shortest", lambda lengths: lengths.shortest),
        row("median", lambda lengths: lengths.median),
        row("mean", lambda lengths: lengths.mean),
        row("90 % have at most", lambda lengths: lengths.p90),
        row("99 % have at most", lambda lengths: lengths.p99),
        row("longest", lambda lengths: lengths.longest),
    ]
    yield f"## Lengths\n\n![How long the documents are]({PICTURE})\n\n{_table(['tokens of a document', *known], rows)}"
    cuts = next(iter(known.values())).cuts
    cut_rows = [[f"{cut.block_size:,}", _share(cut.documents), _share(cut.tokens)] for cut in cuts]
    yield (
        "## What a block size would cut\n\nA window that starts with a document leaves out what lies beyond the block size. "
        f"Of the {next(iter(known))} split:\n\n{_table(['block size', 'documents longer', 'tokens beyond'], cut_rows)}"
    )


def _vocabulary(card: Card) -> str:
    found = card.coverage
    rows = [
        ["ids of the tokenizer", _number(card.manifest.vocab_size)],
        ["that training has", _number(found.used)],
        ["that make 99 % of training", _number(found.for_99_percent)],
        ["that validation has and training has not", _number(found.validation_only)],
        ["that never occur", _number(found.never)],
    ]
    return f"## Vocabulary\n\n{_table(['ids', 'count'], rows)}"


def _baselines(card: Card) -> Iterator[str]:
    lines = {name: nats for name, nats in (card.manifest.baselines or {}).items() if name != "fitted_tokens"}
    if lines:
        fitted = (card.manifest.baselines or {}).get("fitted_tokens")
        of = "" if fitted is None else f" of {fitted:,.0f} training tokens"
        rows = [[name, f"{nats:.3f}"] for name, nats in lines.items()]
        yield f"## To beat\n\nTables{of} reach, on validation:\n\n{_table(['table', 'nats per token'], rows)}"


def _copies(card: Card, excerpt: Excerpt) -> str:
    parts = ["## Copies"]
    if card.exact is None:
        parts.append("Equal documents: not known, as the files do not tell where documents begin.")
    else:
        parts.append(f"Equal documents: {_removals(card.exact)}")
        parts += _examples(card.exact, excerpt)
    if card.near is None:
        parts.append("Near copies: not looked for (`smallgpt prepare card DIR --near-duplicates`).")
    else:
        parts.append(
            f"Near copies, which share {100 * card.near.threshold:g} % of their 5-grams by estimate: {_removals(card.near)}"
            + (f" They are of {card.near.clusters:,} clusters." if card.near.clusters else "")
        )
        parts += _examples(card.near, excerpt)
    return "\n\n".join(parts)


def _removals(found: Duplicates) -> str:
    if not found.removed:
        return "none."
    return (
        f"{found.train:,} training documents repeat another one, {found.across:,} training documents are in validation too, "
        f"and {found.validation:,} validation documents repeat another one."
    )


def _examples(found: Duplicates, excerpt: Excerpt) -> Iterator[str]:
    rows = [[_place(first), _place(copy), _cell(excerpt(copy))] for first, copy in found.examples]
    if rows:
        yield _table(["kept", "copy", "which begins"], rows, "---")


def _contamination(found: Contamination | None, excerpt: Excerpt) -> str:
    head = "## Validation text in training\n\n"
    if found is None:
        return head + "Not looked for (`smallgpt prepare card DIR --contamination`)."
    all_of = f"{found.checked:,} validation documents" + ("" if found.checked == len(found.shares) else " (a sample)")
    text = (
        f"{head}Of {all_of}, {found.documents_above(0):,} share a run of {found.n} tokens with training, "
        f"{found.documents_above(0.5):,} at least half of their runs, {found.documents_above(0.8):,} at least 80 %. "
        f"Of all runs of {found.n} tokens in them, {_share(found.share)} are in training."
    )
    worst: list[Place] = [("validation", number) for number in found.worst]
    rows = [[_place(place), _share(found.shares[place[1]]), _cell(excerpt(place))] for place in worst]
    return f"{text}\n\n{_table(['document', 'in training', 'which begins'], rows)}" if rows else text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---:") -> str:
    lines = [head, ["---", *[align] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _share(value: float) -> str:
    """A percentage that is never 0 % for something, nor 100 % for less than all."""
    if 0 < value < 0.0001:
        return "< 0.01 %"
    return "> 99.99 %" if 0.9999 < value < 1 else f"{100 * value:.2f} %"


def _place(place: Place) -> str:
    return f"{place[0]} {place[1]:,}"


def _cell(text: str) -> str:
    """Text that stays within its cell, and text."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())

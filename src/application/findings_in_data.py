"""Checks on what a run was trained on: its dataset.json against its configuration."""

from collections.abc import Callable

from smallgpt.application.findings import Finding, RunRecord


def validation_is_small(run: RunRecord) -> Finding | None:
    if run.manifest is None:
        return None
    block, tokens = run.config.model.block_size, int((run.split("validation") or {}).get("tokens") or 0)
    if tokens >= 10 * block:
        return None
    size = f"The validation split has {tokens:,} tokens, a block has {block:,}."
    remedy = "Prepare the data again with more held-out text, or use a smaller --model.block-size."
    if tokens == 0:
        return Finding("problem", "There is no validation split", "Over-fitting cannot be seen without one.", remedy)
    if tokens < block:
        return Finding("problem", "The validation split is smaller than one block", size, remedy)
    return Finding("warning", "The validation loss is noisy: the split is under ten blocks", size, remedy)


def documents_are_cut(run: RunRecord) -> Finding | None:
    """Natural documents differ in length: a longest one that is exactly a block, or all of one length, was cut."""
    train, block = run.split("train") or {}, run.config.model.block_size
    documents, longest = int(train.get("documents") or 0), int(train.get("longest_document") or 0)
    if documents < 20 or longest == 0:
        return None
    mean = int(train["tokens"]) / documents
    at_the_block = abs(longest - block) <= 1 and mean >= 0.5 * longest
    all_alike = not _has_end_of_text(run) and longest * documents == int(train["tokens"])
    if not at_the_block and not all_alike:
        return None
    return Finding(
        "problem",
        "Documents look cut",
        f"The longest of {documents:,} documents has {longest:,} tokens, the mean {mean:.0f}, a block {block:,}:"
        " the rest of longer ones is lost.",
        "Prepare the data again with `smallgpt prepare`, which keeps whole documents as one stream.",
    )


def blocks_are_short(run: RunRecord) -> Finding | None:
    train, block = run.split("train") or {}, run.config.model.block_size
    documents = int(train.get("documents") or 0)
    if documents < 20 or int(train["tokens"]) / documents <= 2 * block:
        return None
    return Finding(
        "note",
        "A typical document is longer than two blocks",
        f"The mean document has {int(train['tokens']) / documents:,.0f} tokens, the model sees {block:,} at once.",
        "Raise --model.block-size if text should hang together over a whole document.",
    )


def no_end_of_text(run: RunRecord) -> Finding | None:
    if run.manifest is None:
        return None
    documents = int((run.split("train") or {}).get("documents") or 0)
    if documents > 1 and (run.manifest.get("tokenizer") is None or _has_end_of_text(run)):
        return None
    known = "its tokenizer has an end-of-text token" if _has_end_of_text(run) else "no end-of-text token is known"
    return Finding(
        "note" if documents == 1 else "warning",
        "There is no end-of-text between documents",
        f"The training data counts {documents:,} separated documents and {known}:"
        " generation has no way to learn where to stop.",
        "Prepare the data again with `smallgpt prepare`, which writes the token after every document.",
    )


def epochs(run: RunRecord) -> Finding | None:
    tokens = int((run.split("train") or {}).get("tokens") or 0)
    seen = int(run.train[-1].get("tokens") or 0) if run.train else 0
    if not tokens or not seen or 1 <= seen / tokens <= 20:
        return None
    evidence = f"{seen:,} tokens were trained on, the data has {tokens:,}: {seen / tokens:.2g} epochs."
    if seen < tokens:
        remedy = "More --training.max-steps or --training.max-minutes would still show it new text."
        return Finding("note", "The run is shorter than one epoch", evidence, remedy)
    remedy = "Prepare more data, or watch the validation loss and use more --model.dropout."
    return Finding("note", "The run went over its data many times", evidence, remedy)


def rows_never_used(run: RunRecord) -> Finding | None:
    """Fewer than 128 rows are alignment, which pays for itself on a GPU."""
    rows, used = run.config.model.vocab_size, (run.manifest or {}).get("vocab_size")
    if not used or rows - int(used) < 128:
        return None
    spare = rows - int(used)
    return Finding(
        "note",
        "Many rows of the vocabulary are never used",
        f"The model has {rows:,} rows, the data {int(used):,} ids: {spare:,} rows ({spare / rows:.0%}), or"
        f" {spare * run.config.model.n_embd:,} parameters, are padding.",
        "Leave --model.vocab-size out: a run then takes its data's vocabulary, padded to a multiple of 64.",
    )


def _has_end_of_text(run: RunRecord) -> bool:
    tokenizer = (run.manifest or {}).get("tokenizer") or {}
    return tokenizer.get("end_of_text") is not None


DATA_CHECKS: tuple[Callable[[RunRecord], Finding | None], ...] = (
    documents_are_cut,
    no_end_of_text,
    validation_is_small,
    blocks_are_short,
    epochs,
    rows_never_used,
)

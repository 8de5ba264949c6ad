"""`smallgpt evaluate`: a model's cross-entropy on a whole text, next to what n-gram tables reach."""

import sys
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from smallgpt.domain.errors import CheckpointError, ConfigError, DataError
from smallgpt.interfaces.cli.flags import Json, PlaceOf

if TYPE_CHECKING:
    from smallgpt.application.evaluation import Blocks
    from smallgpt.domain.metrics import Score
    from smallgpt.interfaces.opening import OpenedModel
    from smallgpt.interfaces.phases import Phases

COMPARED = ("nats_per_token", "bits_per_byte")


def evaluate(
    run: PlaceOf,
    /,
    *,
    data: PlaceOf | None = None,
    split: Literal["train", "validation"] | None = None,
    text: Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative="", show_default=False)] = (),
    weights: Literal["float32", "bfloat16", "int8"] = "float32",
    device: str = "auto",
    json: Json = False,
) -> None:
    """Score a model on every token of a split, or of any text.

    Without --data or --text, the validation split of the run's own data.
    The same model and text give the same numbers every time.
    Bits per byte compare models with different tokenizers.

    Try:
      smallgpt evaluate runs/demo
      smallgpt evaluate runs/demo --split train --json
      smallgpt evaluate runs/demo --text story.txt letters.jsonl
      smallgpt evaluate runs/demo --weights int8

    Args:
        run: Run, checkpoint or exported folder; a run or checkpoint also by its URL.
        data: Data folder, or its URL, made with the run's own tokenizer.
        split: Which part of the data folder; validation unless given.
        text: Files to score instead (.txt, .jsonl, .parquet), split into tokens by the run's own tokenizer.
        weights: Score the model as generate runs it with these weights, and as it is, to tell what rounding them costs.
        device: auto, cpu, cuda or cuda:N.
        json: Print a JSON object instead: nats_per_token, bits_per_byte, bits_per_byte_interval (95 %; of ten blocks or
            more), perplexity, tokens, bytes, baselines; with --weights also weights, and float32 with the first two of the
            model as it is.
    """
    if text and data is not None:
        raise ConfigError("give --data or --text, not both")
    if text and split is not None:
        raise ConfigError(f"--split {split} is a part of a data folder, and --text is scored whole; leave one out")
    from rich.console import Console

    from smallgpt.infrastructure.devices import choose_device
    from smallgpt.interfaces.cli.progress import model_fetched, shown
    from smallgpt.interfaces.looking import evaluate_split
    from smallgpt.interfaces.opening import open_data, open_model
    from smallgpt.interfaces.packed_weights import cost_in_words
    from smallgpt.interfaces.phases import Phases, in_words
    from smallgpt.kernels.packed import check_weights, pack

    phases = Phases.of_command()
    phases.end("imports")
    check_weights(weights, choose_device(device))
    opened = open_model(model_fetched(run), device)
    phases.end("model")
    baselines: dict[str, Any] = {}
    score_it: Callable[[], Score]
    if text:
        score_it = lambda: _score_text(opened, text, phases)  # noqa: E731
    else:
        with shown(Console(stderr=True)) as telling:
            store = open_data(opened, data, telling)
        baselines = store.baselines
        phases.end("data")
        progress = _progress(opened.model.config.block_size)
        score_it = lambda: evaluate_split(opened.model, store, split or "validation", progress=progress)  # noqa: E731
    score, exact = score_it(), None
    if weights != "float32":
        pack(opened.model, weights)
        score, exact = score_it(), score
    phases.end("scoring")
    if json:
        result: dict[str, Any] = {**score.as_dict(), "baselines": baselines}
        if exact is not None:
            result |= {"weights": weights, "float32": {key: exact.as_dict()[key] for key in COMPARED}}
        print(dumps(result, indent=2))
    else:
        print(_words(opened.path, score, baselines))
        if exact is not None:
            print(cost_in_words(weights, exact, score, opened.path))
    print(f"time  {in_words(phases.seconds)}", file=sys.stderr)


def _score_text(opened: "OpenedModel", files: tuple[Path, ...], phases: "Phases") -> "Score":
    """Documents as a data folder would hold them: each followed by end-of-text."""
    from smallgpt.application.evaluation import evaluate
    from smallgpt.infrastructure.corpora.parts import Documents
    from smallgpt.infrastructure.corpora.planning import plan_files
    from smallgpt.infrastructure.evaluation_blocks import evaluation_blocks, text_tokens

    tokenizer = opened.tokenizer
    if tokenizer is None:
        raise CheckpointError(f"{opened.path} has no tokenizer.json, so text cannot be turned into its tokens")
    tokens, text_bytes = text_tokens(tokenizer, Documents(plan_files(files)))
    if not text_bytes:
        raise DataError(f"there is no text in {', '.join(map(str, files))}")
    phases.end("data")
    block_size = opened.model.config.block_size
    blocks = evaluation_blocks(tokens, block_size, tokenizer.end_of_text)
    return evaluate(opened.model, _progress(block_size)(blocks, len(tokens)), text_bytes)


def _progress(block_size: int) -> "Callable[[Blocks, int], Blocks]":
    """Hands batches of blocks on, with a bar and the time left on a terminal."""
    from rich.console import Console
    from rich.progress import track

    from smallgpt.infrastructure.evaluation_blocks import BLOCKS_AT_ONCE

    console = Console(stderr=True)

    def shown(blocks: "Blocks", tokens: int) -> "Blocks":
        batches = -(-tokens // (block_size * BLOCKS_AT_ONCE))
        return track(
            blocks, "evaluating", total=batches, console=console, transient=True, disable=not console.is_terminal
        )

    return shown


def _words(model: Path, score: "Score", baselines: dict[str, Any]) -> str:
    from smallgpt.domain.metrics import FEWEST_BLOCKS

    lines = [
        f"model           {model}",  # of a run, its best checkpoint: the score need not be that of its last step
        f"nats per token  {score.nats_per_token:.4f}   over {score.tokens:,} tokens",
        f"perplexity      {score.perplexity:.2f}",
    ]
    if score.bits_per_byte is None:
        lines.append("bits per byte   unknown: the data folder does not say how many bytes of text it holds")
    elif score.bits_per_byte_interval is None:
        few = f"{score.blocks} block{'s' if score.blocks > 1 else ''} of text, fewer than {FEWEST_BLOCKS}"
        lines.append(f"bits per byte   {score.bits_per_byte:.4f}   no interval: {few}")
    else:
        low, high = score.bits_per_byte_interval
        lines.append(f"bits per byte   {score.bits_per_byte:.4f}   95 % interval {low:.4f} to {high:.4f}")
    if baselines:
        from smallgpt.interfaces.cli.display import baseline_words

        lines.append(f"compare         {baseline_words(baselines)}")
    return "\n".join(lines)

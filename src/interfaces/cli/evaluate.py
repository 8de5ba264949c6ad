"""`smallgpt evaluate`: a model's cross-entropy on a whole text, next to what n-gram tables reach."""

import sys
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from smallgpt.domain.errors import CheckpointError, ConfigError, DataError
from smallgpt.interfaces.cli.flags import Json

if TYPE_CHECKING:
    from smallgpt.application.evaluation import Blocks
    from smallgpt.domain.metrics import Score
    from smallgpt.infrastructure.token_store import TokenStore
    from smallgpt.interfaces.opening import OpenedModel
    from smallgpt.interfaces.phases import Phases


def evaluate(
    run: Path,
    /,
    *,
    data: Path | None = None,
    split: Literal["train", "validation"] = "validation",
    text: Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative="", show_default=False)] = (),
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

    Args:
        run: Run, checkpoint or exported folder.
        data: Data folder, made with the run's own tokenizer.
        split: Which part of the data folder.
        text: Files to score instead (.txt, .jsonl, .parquet), split into tokens by the run's own tokenizer.
        device: auto, cpu, cuda or cuda:N.
        json: Print a JSON object instead: nats_per_token, bits_per_byte, perplexity, tokens, bytes, baselines.
    """
    if text and data is not None:
        raise ConfigError("give --data or --text, not both")
    from smallgpt.interfaces.looking import evaluate_split
    from smallgpt.interfaces.opening import open_model
    from smallgpt.interfaces.phases import Phases, in_words

    phases = Phases.of_command()
    phases.end("imports")
    opened = open_model(run, device)
    phases.end("model")
    if text:
        score, baselines = _score_text(opened, text, phases), {}
    else:
        store = _store(opened, data)
        phases.end("data")
        progress = _progress(opened.model.config.block_size)
        score, baselines = evaluate_split(opened.model, store, split, progress=progress), store.baselines
    phases.end("scoring")
    result = {**score.as_dict(), "baselines": baselines}
    print(dumps(result, indent=2) if json else _words(opened.path, score, baselines))
    print(f"time  {in_words(phases.seconds)}", file=sys.stderr)


def _store(opened: "OpenedModel", data: Path | None) -> "TokenStore":
    """The data folder asked for, or the run's own one or ones. Raises CheckpointError when its ids mean other tokens."""
    from smallgpt.infrastructure.token_store import open_store

    folders = (data,) if data else opened.run.config().data.folders if opened.run is not None else ()
    if not folders:
        raise ConfigError(f"{opened.path} does not say what it was trained on; give --data FOLDER or --text FILE")
    store = open_store(*folders)
    theirs = store.manifest.tokenizer
    if opened.tokenizer and theirs and opened.tokenizer.fingerprint != theirs.fingerprint:
        raise CheckpointError(
            f"{opened.path} uses another tokenizer ({opened.tokenizer.fingerprint[:12]}) than {store.name} "
            f"({theirs.fingerprint[:12]});\nscore its text instead: --text FILE uses the model's own tokenizer"
        )
    if store.vocab_size > opened.model.config.vocab_size:
        raise CheckpointError(
            f"{store.name} has {store.vocab_size} token ids, the model {opened.model.config.vocab_size}; "
            "give data made with the model's tokenizer"
        )
    return store


def _score_text(opened: "OpenedModel", files: tuple[Path, ...], phases: "Phases") -> "Score":
    """Documents as a data folder would hold them: each followed by end-of-text."""
    import numpy as np

    from smallgpt.application.evaluation import evaluate
    from smallgpt.infrastructure.corpora.parts import Documents
    from smallgpt.infrastructure.corpora.planning import plan_files
    from smallgpt.infrastructure.evaluation_blocks import evaluation_blocks

    tokenizer = opened.tokenizer
    if tokenizer is None:
        raise CheckpointError(f"{opened.path} has no tokenizer.json, so text cannot be turned into its tokens")
    stop = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], dtype=np.uint32)
    parts: list[np.ndarray[tuple[int], np.dtype[np.uint32]]] = []
    text_bytes = 0
    for document in Documents(plan_files(files)):
        parts += [tokenizer.encode_array(document), stop]
        text_bytes += len(document.encode())
    if not parts:
        raise DataError(f"there is no text in {', '.join(map(str, files))}")
    tokens = np.concatenate(parts)
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
    lines = [
        f"model           {model}",  # of a run, its best checkpoint: the score need not be that of its last step
        f"nats per token  {score.nats_per_token:.4f}   over {score.tokens:,} tokens",
        f"perplexity      {score.perplexity:.2f}",
    ]
    if score.bits_per_byte is None:
        lines.append("bits per byte   unknown: the data folder does not say how many bytes of text it holds")
    elif score.bits_per_byte_interval is None:
        lines.append(f"bits per byte   {score.bits_per_byte:.4f}   a text this short tells little")
    else:
        low, high = score.bits_per_byte_interval
        lines.append(f"bits per byte   {score.bits_per_byte:.4f}   95 % interval {low:.4f} to {high:.4f}")
    if baselines:
        from smallgpt.interfaces.cli.display import baseline_words

        lines.append(f"compare         {baseline_words(baselines)}")
    return "\n".join(lines)

"""`smallgpt inspect`: a look inside a model while it reads a text."""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces.cli.flags import Json, PlaceOf, Whole

if TYPE_CHECKING:
    from smallgpt.interfaces.library import LanguageModel


def inspect_model(
    run: PlaceOf,
    /,
    *,
    prompt: str,
    at: Whole | None = None,
    top: Whole = 3,
    plot: Path | None = None,
    device: str = "auto",
    json: Json = False,
) -> None:
    """Look inside a model while it reads a text.

    Its tokens and what it expects after each; what it would expect if it ended
    after each block (the logit lens); where its attention heads look.

    Try:
      smallgpt inspect runs/demo --prompt "Once upon a time"
      smallgpt inspect runs/demo --prompt "Once upon a time" --at 1 --top 5
      smallgpt inspect runs/demo --prompt "Tom saw Tom" --plot attention.png
      smallgpt inspect runs/demo --prompt "One day" --json

    Args:
        run: Run, checkpoint or exported folder; a run or checkpoint also by its URL.
        prompt: Text to read, up to the model's block.
        at: Position of the token to follow through the blocks, from 0; the last when not given.
        top: How many of the likeliest to show.
        plot: Write the attention maps of all heads as a picture (.png, .svg, .pdf).
        device: auto, cpu, cuda or cuda:N.
        json: Print a JSON object instead: model, tokens, at, lens, heads.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; it must be 1 or more")
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"plot is {plot}; its name must end in .png, .svg or .pdf")
    from smallgpt.application.inspection import inspect
    from smallgpt.interfaces.attention_plot import plot as write_plot
    from smallgpt.interfaces.cli.inspect_tables import as_dict, tables
    from smallgpt.interfaces.cli.progress import model_fetched
    from smallgpt.interfaces.library import load

    model = load(model_fetched(run), device)
    idx = model.encode(prompt)
    inspection = inspect(model, idx, _position(model, idx.size(1), at), model.tokenizer.vocab_size, top)
    ids = idx[0].tolist()
    if plot is not None:
        write_plot(inspection.patterns, [dumps(model.decode([id]), ensure_ascii=False) for id in ids], plot)
    if json:
        print(dumps(as_dict(inspection, model, ids), indent=2))
    else:
        tables(inspection, model, ids)
        if plot is not None:
            print(f"attention maps: {plot}")


def _position(model: "LanguageModel", n_tokens: int, at: int | None) -> int:
    block_size = model.config.block_size
    if n_tokens > block_size:
        raise ConfigError(
            f"the prompt has {n_tokens} tokens, and {model.path} sees {block_size} at once; give less text"
        )
    if at is None:
        return n_tokens - 1
    if not 0 <= at < n_tokens:
        raise ConfigError(f"at is {at}; the prompt's tokens are 0 to {n_tokens - 1}")
    return at

"""`smallgpt generate`: a model's continuation of a prompt, as it comes."""

import sys
from collections.abc import Callable
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from smallgpt.domain.errors import CheckpointError, ConfigError, DataError
from smallgpt.interfaces.cli.flags import Json, Whole

if TYPE_CHECKING:
    from smallgpt.domain.sampling import Sampling
    from smallgpt.interfaces.opening import OpenedModel


def generate(
    run: Path,
    /,
    *,
    prompt: str | None = None,
    prompt_file: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    max_new_tokens: Whole = 200,
    temperature: float = 0.8,
    top_k: Whole | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: Whole | None = None,
    num_samples: Whole = 1,
    device: str = "auto",
    json: Json = False,
) -> None:
    """Continue a prompt, up to the end of the text.

    Try:
      smallgpt generate runs/demo --prompt "Once upon a time"
      smallgpt generate runs/demo --prompt "Tom had a kite." --temperature 0
      smallgpt generate runs/demo --num-samples 3 --seed 1 --top-p 0.95
      echo "One day" | smallgpt generate runs/demo --prompt-file - --json

    Args:
        run: Run, checkpoint or exported folder.
        prompt: Text to continue; without one the model starts a text of its own.
        prompt_file: File with the prompt, or - for standard input. One line end at its end is left out.
        max_new_tokens: Longest continuation, in tokens.
        temperature: Below 1 bolder in what is likely, above 1 more varied; 0 takes the most likely token.
        top_k: Choose among the k most likely tokens.
        top_p: Choose among the most likely tokens that together reach this probability.
        min_p: Choose among tokens at least this many times as likely as the most likely one.
        repetition_penalty: Above 1 makes tokens that occurred less likely.
        seed: Makes the text repeatable; sample i uses seed + i. Another one every time when not given.
        num_samples: Continuations of the same prompt.
        device: auto, cpu, cuda or cuda:N.
        json: Print a JSON list instead: prompt, text, tokens, end, seed.
    """
    from smallgpt.domain.sampling import Sampling
    from smallgpt.interfaces.opening import open_model

    text = _prompt(prompt, prompt_file)
    seed = _seed(seed, num_samples)
    if max_new_tokens < 1:
        raise ConfigError(f"max-new-tokens is {max_new_tokens}; it must be 1 or more")
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    opened = open_model(run, device)
    show = _ignore if json else _print
    results = []
    for index in range(num_samples):
        show(f"--- {index + 1} of {num_samples}\n" if num_samples > 1 else "")
        show(text)
        results.append(continue_prompt(opened, text, max_new_tokens, sampling, seed + index, show))
        show("\n")
    if json:
        print(dumps(results, indent=2))


def continue_prompt(
    opened: "OpenedModel",
    prompt: str,
    max_new_tokens: int,
    sampling: "Sampling",
    seed: int,
    show: Callable[[str], None],
) -> dict[str, Any]:
    """Sample up to end-of-text or max_new_tokens; every whole character goes to `show` at once. Gives what --json prints."""
    from smallgpt.application.generation import continuation
    from smallgpt.infrastructure.tokenizers import StreamDecoder

    tokenizer = opened.tokenizer
    if tokenizer is None:
        raise CheckpointError(f"{opened.path} has no tokenizer.json, so its tokens cannot be shown as text")
    ids = tokenizer.encode(prompt)
    if not ids and tokenizer.end_of_text is None:
        raise ConfigError("this tokenizer has no end-of-text token to start from; give a --prompt")
    if not ids and tokenizer.end_of_text is not None:
        ids = [tokenizer.end_of_text]
    sampling = replace(sampling, n_tokens=tokenizer.vocab_size)  # the rows beyond are padding
    decoder = StreamDecoder(tokenizer)
    pieces, tokens = [prompt], 0
    for token in continuation(opened.model, ids, max_new_tokens, sampling, seed=seed, end=tokenizer.end_of_text):
        tokens += 1
        pieces.append(decoder.feed(token))
        show(pieces[-1])
    pieces.append(decoder.flush())
    show(pieces[-1])
    end = "end-of-text" if tokens < max_new_tokens else "length"
    return {"prompt": prompt, "text": "".join(pieces), "tokens": tokens, "end": end, "seed": seed}


def _print(piece: str) -> None:
    print(piece, end="", flush=True)


def _ignore(piece: str) -> None:
    """--json prints the whole at the end."""


def _prompt(prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is not None:
        raise ConfigError("give --prompt or --prompt-file, not both")
    if file is None:
        return prompt or ""
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"prompt file {file}: byte {error.start} is not UTF-8; convert the file to UTF-8") from None
    return text.replace("\r\n", "\n").removesuffix("\n")


def _seed(seed: int | None, num_samples: int) -> int:
    from secrets import randbelow

    if num_samples < 1:
        raise ConfigError(f"num-samples is {num_samples}; it must be 1 or more")
    if seed is None:
        return randbelow(2**31)
    if not 0 <= seed < 2**63 - num_samples:
        raise ConfigError(f"seed is {seed}; it must be between 0 and 2^63")
    return seed

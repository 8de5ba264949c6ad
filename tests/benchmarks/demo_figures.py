"""The demo's figures, from a finished run: its time, its score beside the trigram line, and how many stories parse.

    python tests/benchmarks/demo_figures.py runs/demo [--stories 100] [--temperature 0.5] [--json FILE]

Stories are sampled from the end-of-text token with a fixed seed, and read by the grammar that wrote the training stories.
"""

import argparse
import json
from pathlib import Path

import torch

from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.sampling import Sampling
from smallgpt.infrastructure.corpora.demo import parses
from smallgpt.infrastructure.provenance import record
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.tokenizers import AnyTokenizer
from smallgpt.interfaces.opening import open_model

LONGEST = 300


def tell(model: GPT, tokenizer: AnyTokenizer, stories: int, temperature: float) -> list[str]:
    """Sampled stories, those that do not end within LONGEST tokens cut there."""
    assert tokenizer.end_of_text is not None
    start = torch.full((stories, 1), tokenizer.end_of_text)
    sampling = Sampling(temperature=temperature, n_tokens=tokenizer.vocab_size)
    columns, running = [], torch.ones(stories, dtype=torch.bool)
    for column in model.stream(start, LONGEST, sampling, torch.Generator().manual_seed(1)):
        columns.append(column)
        running &= column[:, 0] != tokenizer.end_of_text
        if not running.any():
            break
    rows = torch.cat(columns, dim=1).tolist()
    ends = [row.index(tokenizer.end_of_text) if tokenizer.end_of_text in row else len(row) for row in rows]
    return [tokenizer.decode(row[:end]) for row, end in zip(rows, ends, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--stories", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    opened = open_model(arguments.run)
    if opened.tokenizer is None:
        raise CheckpointError(f"{arguments.run} has no tokenizer")
    events = RunFolder(arguments.run).metrics()
    start, end = (next(e for e in events if e["event"] == kind) for kind in ("start", "end"))
    final = next(e for e in events if e["event"] == "validation" and e["final"])
    told = tell(opened.model, opened.tokenizer, arguments.stories, arguments.temperature)
    figures = {
        "seconds": end["seconds"],
        "steps": end["step"],
        "nats_per_token": final["nats_per_token"],
        "bits_per_byte": final["bits_per_byte"],
        "trigram": start["baselines"]["trigram"],
        "stories": len(told),
        "stories_that_parse": sum(map(parses, told)),
        "temperature": arguments.temperature,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(record({}, [figures]), indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

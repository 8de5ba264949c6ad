"""Does lm-evaluation-harness, on an exported folder, find the bits per byte that `smallgpt evaluate` finds?

    pip install 'lm_eval[hf]==0.4.13'
    python tests/ecosystem/lm_eval_agrees.py runs/demo

A run is exported with `--to hf`, and stories of the demo that it was not trained on are scored twice: by `smallgpt evaluate
--text`, and by the harness as a task of its own kind (loglikelihood_rolling, bits_per_byte) on the exported files alone. Ends
with 1 when they differ.

Both see one stream in which end-of-text follows each story, cut into whole blocks: the harness would give the tokens of a
shorter last block more context.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

END_OF_TEXT = "<|endoftext|>"
RELATIVE = 1e-5
"""What rounding may differ."""
TASK = """\
task: smallgpt_stories
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
process_results: !function stories.bits_per_byte
metric_list: [{{metric: bits_per_byte}}]
metadata: {{version: 1.0}}
"""
PROCESS = """\
def bits_per_byte(doc, results):
    text = doc["text"].replace("<|endoftext|>", "")
    return {"bits_per_byte": (results[0], len(text.encode()))}
"""


def main() -> int:
    """Score twice, print both, and tell by the exit code whether they agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="a run that smallgpt trained")
    parser.add_argument("--stories", type=int, default=200, help="how many")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        place = Path(folder)
        smallgpt("export", arguments.run, "--to", "hf", "--out", place / "model")
        stories = whole_blocks(place / "model", arguments.stories)
        (place / "stories.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
        ours = json.loads(smallgpt("evaluate", arguments.run, "--text", place / "stories.jsonl", "--json"))
        theirs = by_the_harness(place, "".join(story + END_OF_TEXT for story in stories))
    apart = abs(theirs - ours["bits_per_byte"]) / ours["bits_per_byte"]
    print(f"stories            {len(stories)}, {ours['tokens']:,} tokens, {ours['bytes']:,} bytes")
    print(f"smallgpt evaluate  {ours['bits_per_byte']:.7f} bits per byte")
    print(f"lm_eval            {theirs:.7f} bits per byte")
    print(f"apart              {apart:.1e} of it; {RELATIVE:g} is allowed")
    return 0 if apart <= RELATIVE else 1


def smallgpt(*words: object) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "smallgpt", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def whole_blocks(model: Path, number: int) -> list[str]:
    """Stories of the demo's held-out text, the last one cut where their tokens fill whole blocks."""
    from smallgpt.infrastructure.corpora.parts import Documents
    from smallgpt.infrastructure.corpora.sources import demo_corpus
    from smallgpt.infrastructure.formats.hugging_face import read

    found = read(model)
    tokenizer, block_size = found.tokenizer, found.config.block_size
    assert tokenizer is not None
    stories: list[str] = []
    for story in Documents(demo_corpus().validation or ()):
        stories.append(story)
        if len(stories) >= number:
            before = sum(len(tokenizer.encode(each)) + 1 for each in stories[:-1])
            for end in range(len(story), 0, -1):
                if (before + len(tokenizer.encode(story[:end])) + 1) % block_size == 0:
                    return [*stories[:-1], story[:end]]
    raise SystemExit("no number of stories fills whole blocks")


def by_the_harness(place: Path, text: str) -> float:
    """Its bits per byte of the exported model on one long text."""
    os.environ |= {"HF_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from lm_eval import simple_evaluate  # type: ignore[import-not-found,unused-ignore]
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found,unused-ignore]

    (place / "one.jsonl").write_text(json.dumps({"text": text}) + "\n")
    tasks = place / "tasks"
    tasks.mkdir()
    (tasks / "stories.py").write_text(PROCESS)
    (tasks / "stories.yaml").write_text(TASK.format(data=place / "one.jsonl"))
    arguments = {"pretrained": str(place / "model"), "dtype": "float32"}
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # a bar for every batch
        found: dict[str, Any] = simple_evaluate(
            model="hf",
            model_args=arguments,
            tasks=["smallgpt_stories"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            device="cpu",
            batch_size=8,
            bootstrap_iters=0,
        )
    value = float(found["results"]["smallgpt_stories"]["bits_per_byte,none"])
    assert math.isfinite(value)
    return value


if __name__ == "__main__":
    sys.exit(main())

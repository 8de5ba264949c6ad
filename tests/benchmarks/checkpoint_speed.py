"""What checkpoints cost the seed's model (16 M parameters): saved at once, saved beside training, and gone on from.

    python tests/benchmarks/checkpoint_speed.py DATA_FOLDER [--saves 8] [--resumes 5] [--json FILE]

Real commands on short steps, with the seed's vocabulary whatever the data's is. A pause is the time for which training stands
still, as the run's record tells; "beside the writing" are the steps between a save and its being kept. A resume counts from
the start of its process to the end of its first step.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from smallgpt.infrastructure.provenance import record
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces.phases import in_words

EVERY = 24  # steps between two saves: more than are done beside the writing of one
BATCH = 8
SMALL = [
    f"--training.batch-size={BATCH}",
    f"--training.micro-batch={BATCH}",
    "--model.vocab-size=50304",
    "--evaluation.every=0",
    "--evaluation.max-tokens=128",  # at every checkpoint, and would otherwise hide the writing
    "--evaluation.sample-every=0",
]


@contextmanager
def training(run: Path, *words: str) -> Iterator[Callable[[str, int], None]]:
    """A run in a process of its own, asked to stop and save at the end. Gives wait(kind of event, how many of them)."""
    command = [sys.executable, "-m", "smallgpt", "train", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=run.parent) as process:

        def wait(event: str, count: int) -> None:
            while n_events(run, event) < count:
                assert process.poll() is None, f"it ended before its {event}"
                time.sleep(0.005)

        yield wait
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM


def n_events(run: Path, event: str) -> int:
    file = RunFolder(run).metrics_file
    return file.read_text().count(f'"event": "{event}"') if file.exists() else 0


def train(data: Path, run: Path, saves: int, *words: str) -> list[dict[str, Any]]:
    """The record of a run with so many saves in it, and one more at its end."""
    often = f"--checkpoint.every={EVERY}"
    with training(run, "seed", "--data", str(data), "--out", str(run), *SMALL, often, *words) as wait:
        wait("checkpoint", saves)
    return RunFolder(run).metrics()


def resume_seconds(run: Path) -> float:
    """From the start of a process to its first step."""
    before = n_events(run, "first_step")
    began = time.perf_counter()
    with training(run, "--resume", str(run)) as wait:
        wait("first_step", before + 1)
        return time.perf_counter() - began


def pauses(events: Sequence[dict[str, Any]]) -> list[float]:
    """Of the saves within a run; the last one is waited for."""
    return [event["seconds"] for event in events if event["event"] == "checkpoint"][:-1]


def step_seconds(events: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Of the steps beside a writing, and of the others, warm-up left out."""
    beside: list[float] = []
    others: list[float] = []
    saved_at, kept = 0, 0
    for event in events:
        if event["event"] == "checkpoint":
            kept = event["step"]
        elif event["event"] == "train" and event["step"] > 2:
            (beside if kept < saved_at else others).append(BATCH * 128 / event["tokens_per_second"])
        if event["event"] == "train" and event["step"] % EVERY == 0:
            saved_at = event["step"]
    return beside, others


def row(what: str, seconds: Sequence[float], **also: Any) -> dict[str, Any]:
    """Repeats of one thing."""
    figures = {"median": median(seconds), "fastest": min(seconds), "slowest": max(seconds)}
    rounded = {f"{name}_seconds": round(found, 4) for name, found in figures.items()}
    return {"measured": what, **rounded, "times": len(seconds), **also}


def rows(data: Path, folder: Path, saves: int, resumes: int) -> list[dict[str, Any]]:
    at_once = train(data, folder / "at-once", saves)
    alongside = train(data, folder / "alongside", saves, "--checkpoint.asynchronous")
    beside, others = step_seconds(alongside)
    assert beside, "every write ended within a step: nothing was beside it"
    resumed = [resume_seconds(folder / "at-once") for _ in range(resumes)]
    starts = [event for event in RunFolder(folder / "at-once").metrics() if event["event"] == "start"]
    return [
        row("pause of a save", pauses(at_once)),
        row("pause of an asynchronous save", pauses(alongside)),
        row("the first of them, which takes the memory", pauses(alongside)[:1]),
        row("a step", others),
        row("a step beside the writing", beside),
        row("resume, to the first step", resumed, start=in_words(starts[-1]["startup_seconds"])),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--saves", type=int, default=8)
    parser.add_argument("--resumes", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # the disk, and not memory that is mounted as /tmp
        found = rows(arguments.data.absolute(), Path(folder), arguments.saves, arguments.resumes)
        newest = RunFolder(Path(folder) / "at-once").checkpoints()[-1]
        size = sum(path.stat().st_size for path in newest.iterdir())
    figures = record({"checkpoint_bytes": size, "tokens_per_step": BATCH * 128}, found)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

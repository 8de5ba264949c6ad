"""Training by the command line with our kernels: bf16, fp16 with its loss scale, resume, generate, and against the formula."""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

NEEDED = ("pydantic", "cyclopts", "rich", "datasets", "tokenizers", "tiktoken", "safetensors", "tomli_w", "pyarrow")
TINY = {
    "model.n-layer": 2,
    "model.n-head": 2,
    "model.n-embd": 128,
    "model.block-size": 128,
    "model.dropout": 0,
    "training.batch-size": 16,
    "training.compile": "off",
    "evaluation.every": 0,
    "evaluation.sample-every": 0,
}
STEPS, LONG = 50, 300
ALLOWED = {"bf16": 0.02, "fp32": 1e-3}
"""How far the mean loss of the last 50 of 300 steps may lie from the formula's, in nats."""


def run(backend: str = "triton", device: str = "cuda", steps: int = STEPS, long: int = LONG) -> dict[str, Any]:
    """passed, and what each run ended with; or skipped, and why."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        words = f"skipped: not importable: {', '.join(missing)}"
        print(words)
        return {"passed": True, "skipped": words}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "stories.txt").write_text("\n<|endoftext|>\n".join(_stories()), encoding="utf-8")
        _smallgpt("prepare", "text", place / "stories.txt", "--tokenizer", "bytes", "--out", place / "data")
        trainer = Trainer(place, device)
        checks = trainer.short_runs(backend, steps)
        for precision, allowed in ALLOWED.items():
            checks.append(trainer.beside_formula(backend, precision, long, allowed))
    for check in checks:
        print(f"{'ok    ' if check['passed'] else 'FAILED'} {check['what']}: {check['found']}")
    return {"passed": all(check["passed"] for check in checks), "checks": checks}


class Trainer:
    """Runs of one folder on one device."""

    def __init__(self, place: Path, device: str) -> None:
        self.place, self.device = place, device

    def train(self, name: str, backend: str, precision: str, steps: int) -> list[float]:
        """Losses of a run."""
        out = self.place / name
        chosen = {"training.precision": precision, "kernels.backend": backend, "training.max-steps": steps}
        flags = [f"--{name}={value}" for name, value in {**TINY, **chosen, "training.device": self.device}.items()]
        _smallgpt("train", "--data", self.place / "data", "--out", out, *flags)
        return losses(out)

    def short_runs(self, backend: str, steps: int) -> list[dict[str, Any]]:
        """bf16 and fp16 each learn; the bf16 run goes on; it tells something."""
        checks = []
        for precision in ("bf16", "fp16"):
            found = self.train(precision, backend, precision, steps)
            first, last = mean(found[:5]), mean(found[-5:])  # a step that fp16's loss scale skips counts, too
            fell = len(found) == steps and last < first
            checks.append(
                {"what": f"{steps} steps in {precision}", "passed": fell, "found": f"{first:.3f} -> {last:.3f}"}
            )
        _smallgpt("train", "--resume", self.place / "bf16", f"--training.max-steps={steps + 5}")
        found = losses(self.place / "bf16")
        checks.append({"what": "resumed for 5 more", "passed": len(found) == steps + 5, "found": f"{len(found)} steps"})
        run = ["generate", self.place / "bf16", "--prompt", "Once", "--max-new-tokens", "20", "--seed", "0", "--json"]
        text = json.loads(_smallgpt(*run, "--device", self.device))[0]["text"]
        checks.append({"what": "generate", "passed": text.startswith("Once") and len(text) > 4, "found": repr(text)})
        return checks

    def beside_formula(self, backend: str, precision: str, steps: int, allowed: float) -> dict[str, Any]:
        """The same run with our kernels and with the formulas."""
        ours, theirs = (
            self.train(f"{name}-{precision}-long", name, precision, steps) for name in (backend, "reference")
        )
        gap = abs(mean(ours[-50:]) - mean(theirs[-50:]))
        words = f"{gap:.2e} nats apart at the end ({allowed:g} allowed; {mean(ours[-50:]):.4f})"
        return {"what": f"{steps} steps in {precision} beside the formula", "passed": gap <= allowed, "found": words}


def _stories() -> Iterator[str]:
    """Something to learn that takes no time to prepare and little to evaluate."""
    pick = random.Random(0).choice
    for number in range(2000):
        yield f"Once {pick(['Tom', 'Mia', 'Ana'])} had a {pick(['kite', 'dog', 'boat'])} and {number} hats. All was well."


def losses(run: Path) -> list[float]:
    """Of every optimizer step of a run."""
    events = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "train"]


def _smallgpt(*words: object) -> str:
    command = [sys.executable, "-m", "smallgpt", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}: exit code {done.returncode}\n{done.stderr.strip()}")
    return done.stdout

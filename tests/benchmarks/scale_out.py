"""Training with several processes on this machine, beside what the arithmetic of `smallgpt plan` says.

    python tests/benchmarks/scale_out.py --out docs/benchmarks/scale-out-cpu.json --plot docs/benchmarks/scale-out-cpu.png

bytes: what each of two and four hosts sends in a step, by the counters of its network card. Hosts are network namespaces.
time: a step between two hosts whose links are slowed down, beside computing plus bytes ÷ rate.
scaling: tokens a second of one process with all cores, two with one each, and four.
launcher: one process under torchrun, and without.

The last two are `smallgpt train` as it stands, in turns; bytes and time need root, `ip` and `tc`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script

from smallgpt.application.scale_plan import Traffic, parameters, traffic, waiting  # noqa: E402
from smallgpt.domain.config import GPTConfig  # noqa: E402
from smallgpt.infrastructure.provenance import record  # noqa: E402
from tests.scale_out.hosts import CARD, Host, hosts, missing  # noqa: E402

WORKER = Path(__file__).with_name("scale_out_worker.py")
PARTS = ("bytes", "time", "scaling", "launcher")
SMALL = {"block_size": 128, "vocab_size": 2048, "n_layer": 4, "n_head": 4, "n_embd": 256, "dropout": 0.0}
TINY = {"block_size": 32, "vocab_size": 512, "n_layer": 2, "n_head": 2, "n_embd": 64, "dropout": 0.0}
SEED = {**SMALL, "vocab_size": 50304}
RATES = (None, 1e9, 2e8)  # bits a second
PORT = "29510"
GATHERED = {"evaluation": 4, "checkpoint": 12}
"""Bytes a parameter that are gathered from shards: weights, for each batch that all evaluate; and both moments."""


def together(what: str, settings: dict[str, Any], on: list[Host]) -> list[list[dict[str, Any]]]:
    """What the worker finds, by rank: one process in each host."""
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, f"{rank}.json") for rank in range(len(on))]
        started = []
        for rank, (host, place) in enumerate(zip(on, places, strict=True)):
            own = {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(on)),
                "OMP_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "passive",
            }
            own |= {
                "MASTER_ADDR": on[0].address,
                "MASTER_PORT": PORT,
                "GLOO_SOCKET_IFNAME": CARD,
            }
            own["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # hosts have no names, and torch remarks on it
            words = [
                "ip",
                "netns",
                "exec",
                host.name,
                sys.executable,
                str(WORKER),
                what,
                str(place),
                json.dumps(settings),
            ]
            started.append(subprocess.Popen(words, env=os.environ | own))
        try:
            codes = [process.wait(timeout=600) for process in started]
            if any(codes):
                raise SystemExit("a process of the measurement failed; its own words are above")
        finally:
            for process in started:
                process.kill()
        return [json.loads(place.read_text()) for place in places]


def bytes_sent(tiny: bool, counts: tuple[int, ...] = (2, 4)) -> Iterator[dict[str, Any]]:
    """Measured and counted; gloo's reduce-scatter is an all-reduce of which each keeps its part: twice the ring's bytes."""
    model = TINY if tiny else SMALL
    sizes = parameters(GPTConfig.model_validate(model))
    for w in counts:
        with hosts(w) as (*made, _):
            settings = {"model": model, "batch_size": 2 * w, "steps": 2 if tiny else 4}
            ranks = together("bytes", settings, made)
        for found in zip(*ranks, strict=True):
            sent = sum(rank["sent"] for rank in found) / w
            if "collective" in found[0]:
                name, ring = found[0]["collective"], (w - 1) / w * found[0]["tensor"]
                yield _bytes_row(w, f"{name} of 4 MiB", sent, ring * (2 if name == "all-reduce" else 1), None)
                continue
            way, reduce, passes = (found[0][key] for key in ("parallel", "reduce", "passes"))
            counted = traffic(sizes, way, w, passes, reduce)
            words = f"{way} {reduce}" + (f", {passes} passes" if passes > 1 else "")
            yield _bytes_row(w, words, sent, counted.all, of_gloo(counted, way))
            for what, itemsize in GATHERED.items():
                if what in found[0] and way == "fsdp2":
                    mean = sum(rank[what] for rank in found) / w
                    yield _bytes_row(w, f"{way}: {what}", mean, (w - 1) / w * itemsize * sizes.all, None)


def of_gloo(counted: Traffic, way: str) -> float:
    """Bytes where a reduce-scatter sends as much as an all-reduce."""
    return counted.gathers + counted.reduces * (2 if way == "fsdp2" else 1)


def _bytes_row(w: int, what: str, sent: float, ring: float, gloo: float | None) -> dict[str, Any]:
    counted = {"ring_megabytes": round(ring / 1e6, 3), "gloo_megabytes": None if gloo is None else round(gloo / 1e6, 3)}
    ratio = round(sent / (gloo or ring), 4)
    part = "Sent by each process, in a step or where another thing is named"
    return {"part": part, "hosts": w, "what": what, "sent_megabytes": round(sent / 1e6, 3), **counted, "ratio": ratio}


def step_times(tiny: bool) -> Iterator[dict[str, Any]]:
    """Two hosts: measured, and computing alone plus the bytes that gloo sends: all waited for, or hidden where they can be."""
    model = TINY if tiny else SMALL
    sizes = parameters(GPTConfig.model_validate(model))
    settings = {"model": model, "batch_size": 8, "rounds": 2 if tiny else 4}
    for rate in RATES:
        with hosts(2) as (*made, _):
            for host in made if rate is not None else ():
                host.limit(rate or 0)
            ranks = together("time", settings, made)
        alone, *cases = zip(*ranks, strict=True)
        computing = median(max(both) for both in zip(*(rank["seconds"] for rank in alone), strict=True))
        for found in cases:
            seconds = [max(both) for both in zip(*(rank["seconds"] for rank in found), strict=True)]
            row = {
                "part": "Seconds of a step between two hosts",
                "link": "not limited" if rate is None else f"{rate / 1e6:,.0f} Mbit/s",
                "what": f"{found[0]['parallel']} {found[0]['reduce']}",
                "step_seconds": round(median(seconds), 4),
                "spread_seconds": [round(min(seconds), 4), round(max(seconds), 4)],
                "computing_seconds": round(computing, 4),
            }
            if rate is not None:
                counted = traffic(sizes, found[0]["parallel"], 2, 1, found[0]["reduce"])
                twice = 2 if found[0]["parallel"] == "fsdp2" else 1  # gloo's reduce-scatter
                counted = Traffic(
                    counted.gathers_outside, counted.gathers_blocks,
                    twice * counted.reduces_outside, twice * counted.reduces_blocks,
                )  # fmt: skip
                hidden = computing + waiting(counted, computing, 1, rate / 8)
                added = computing + counted.all / (rate / 8)
                row |= {"hidden_seconds": round(hidden, 4), "added_seconds": round(added, 4)}
                row["ratio_to_added"] = round(row["step_seconds"] / added, 3)
            yield row


class Trainer:
    """`smallgpt train` runs of one model on one small corpus."""

    def __init__(self, folder: Path, model: dict[str, Any], batch_size: int, steps: int) -> None:
        self.folder, self.model, self.batch_size, self.steps = folder, model, batch_size, steps
        self.data = folder / "data"
        if not self.data.exists():
            text = folder / "text.txt"
            text.write_text(
                "\n<|endoftext|>\n".join(f"Day {day}: it rained, and the dog slept." for day in range(2000))
            )
            self._run("smallgpt", "prepare", "text", str(text), "--tokenizer", "bytes", "--out", str(self.data))

    def __call__(self, processes: int, *, launcher: bool = True) -> tuple[float, float]:
        """Median tokens a second after two steps that do not count, and seconds of the whole command."""
        run = self.folder / f"run-{time.time_ns()}"
        model = {name: str(size) for name, size in self.model.items()}
        settings = [f"--model.{name.replace('_', '-')}={size}" for name, size in model.items()]
        settings += [f"--training.batch-size={self.batch_size}", f"--training.max-steps={self.steps}"]
        settings += ["--training.device=cpu", "--training.compile=off", "--evaluation.every=0"]
        settings += ["--evaluation.sample-every=0", "--checkpoint.every=0", "--schedule.warmup=0"]
        words = ["smallgpt", "train", "--data", str(self.data), "--out", str(run), *settings]
        if launcher:
            words = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", *words]
        began = time.perf_counter()
        self._run(*words)
        seconds = time.perf_counter() - began
        events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rates = [event["tokens_per_second"] for event in events if event["event"] == "train"]
        return median(rates[2:]), seconds

    def _run(self, *words: str) -> None:
        threads = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")  # as a user's shell, where nothing is said about them
        own = {name: value for name, value in os.environ.items() if name not in threads}
        path = os.pathsep.join([str(ROOT / "typings"), *filter(None, [own.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", *words], env=own | {"PYTHONPATH": path}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")


def scaling(tiny: bool) -> Iterator[dict[str, Any]]:
    """Tokens a second by the number of processes, in turns; the ratio is to one process with all cores."""
    models = {"small": (SMALL, 16, 3), "seed": (SEED, 16, 2)}
    if tiny:
        models = {"tiny": (TINY, 8, 1)}
    for name, (model, batch_size, rounds) in models.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(Path(folder), model, batch_size, steps=4 if tiny else 8)
            found: dict[int, list[float]] = {1: [], 2: [], 4: []}
            for _ in range(rounds):
                for processes, rates in found.items():
                    rates.append(trainer(processes, launcher=processes > 1)[0])
        for processes, rates in found.items():
            yield {
                "part": "Tokens a second by processes (ddp), the ratio to one process with all cores",
                "model": f"{name}, {parameters(GPTConfig.model_validate(model)).all / 1e6:.1f} M",
                "processes": processes,
                "tokens_per_second": round(median(rates)),
                "slowest": round(min(rates)),
                "fastest": round(max(rates)),
                "ratio": round(median(a / b for a, b in zip(rates, found[1], strict=True)), 3),
            }


def launcher(tiny: bool) -> Iterator[dict[str, Any]]:
    """One process, started by torchrun and not, in turns."""
    part = "One process, without torchrun and with it"
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder), TINY if tiny else SMALL, 8 if tiny else 16, steps=4 if tiny else 30)
        pairs = [(trainer(1, launcher=False), trainer(1)) for _ in range(1 if tiny else 4)]
    for name, found in zip(("smallgpt train", "torchrun ... smallgpt train"), zip(*pairs, strict=True), strict=True):
        rates, seconds = zip(*found, strict=True)
        yield {
            "part": part,
            "started by": name,
            "tokens_per_second": round(median(rates)),
            "slowest": round(min(rates)),
            "fastest": round(max(rates)),
            "ratio": round(median(own[0] / pair[0][0] for own, pair in zip(found, pairs, strict=True)), 3),
            "whole_command_seconds": round(median(seconds), 1),
        }


MEASURES = {"bytes": bytes_sent, "time": step_times, "scaling": scaling, "launcher": launcher}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="just one of the four")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps, to see that it works")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--plot", type=Path, help="file for a picture of bytes, times and scaling")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the hosts are taken down on the way
    parts = (given.only,) if given.only else PARTS
    reason = missing() if {"bytes", "time"} & {*parts} else None
    if reason is not None:
        parser.error(f"{reason}; --only scaling and --only launcher do without")
    rows = [row for part in parts for row in MEASURES[part](given.tiny)]
    print(json.dumps(rows, indent=2))
    if given.out is not None:
        given.out.write_text(json.dumps(record(TINY if given.tiny else SMALL, rows), indent=2) + "\n", encoding="utf-8")
    if given.plot is not None:
        from tests.benchmarks.scale_out_plot import plot

        plot(rows, given.plot)


if __name__ == "__main__":
    main()

"""Has something of ours become slower beside others? `make bench`: ratios of medians, against a committed baseline.

    python -m tests.benchmarks.ratios            time, compare; exit code 1 if a ratio is worse
    python -m tests.benchmarks.ratios --write    time, and make that the baseline

A ratio is another implementation's median ÷ ours, both of one run: milliseconds differ between machines and days, ratios
much less. It is worse when it is below the baseline by more than TOLERANCE and SIGMAS standard errors of the two ratios
together; and, because a busy machine can hold up one test and not the next, only if a second timing of its group says so
too. Where the noise alone would let a ratio fall by NOISY, the pair is told as noisy: only a large fall would be seen.
Another processor may rightly give other ratios: there the table is shown and nothing is judged.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from smallgpt.infrastructure.provenance import provenance

BASELINE = Path("tests/benchmarks/baseline-ratios.json")
SUITE = "tests/benchmarks/test_operations.py"
OURS = "torch"
TOLERANCE = 0.15
SIGMAS = 3
NOISY = 0.5

Benchmark = dict[str, Any]
"""One entry of pytest-benchmark's JSON."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long as ours another implementation takes."""

    ratio: float
    error: float
    """Relative standard error."""


@dataclass(frozen=True)
class Verdict:
    """A pair now and in the baseline."""

    pair: str
    word: Literal["ok", "noisy", "worse", "new", "not timed"]
    now: Ratio | None
    before: Ratio | None
    least: float | None
    """What the ratio may fall to."""


def pairs(benchmarks: Iterable[Benchmark]) -> dict[str, Ratio]:
    """Every other implementation beside ours, "group: implementation" -> Ratio."""
    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for each in benchmarks:
        groups.setdefault(each["group"], {})[each["extra_info"]["implementation"]] = _median(each["stats"])
    found = {}
    for group, implementations in groups.items():
        ours, our_error = implementations.pop(OURS)
        for name, (theirs, error) in implementations.items():
            found[f"{group}: {name}"] = Ratio(theirs / ours, hypot(error, our_error))
    return found


def _median(stats: Mapping[str, float]) -> tuple[float, float]:
    """A median and its relative standard error: 1.253 σ/√n, with σ from the interquartile range (÷ 1.349), as of a normal."""
    return stats["median"], 1.253 / 1.349 * stats["iqr"] / sqrt(stats["rounds"]) / stats["median"]


def judge(now: Mapping[str, Ratio], baseline: Mapping[str, Ratio]) -> list[Verdict]:
    """One a pair of either, those of the baseline first."""
    found = []
    for pair in dict.fromkeys([*baseline, *now]):
        own, before = now.get(pair), baseline.get(pair)
        if own is None or before is None:
            found.append(Verdict(pair, "not timed" if own is None else "new", own, before, None))
        else:
            found.append(_beside(pair, own, before))
    return found


def _beside(pair: str, own: Ratio, before: Ratio) -> Verdict:
    noise = SIGMAS * hypot(own.error, before.error)
    least = before.ratio / (1 + TOLERANCE + noise)
    if own.ratio < least:
        return Verdict(pair, "worse", own, before, least)
    return Verdict(pair, "noisy" if noise > NOISY else "ok", own, before, least)


def suspects(verdicts: Iterable[Verdict], benchmarks: Iterable[Benchmark]) -> list[str]:
    """Names of the tests whose group has a pair that is worse, for timing them again."""
    groups = {verdict.pair.rsplit(": ", 1)[0] for verdict in verdicts if verdict.word == "worse"}
    return [each["fullname"] for each in benchmarks if each["group"] in groups]


def better_of(first: Mapping[str, Ratio], second: Mapping[str, Ratio]) -> dict[str, Ratio]:
    """Of two timings of a pair, the one that speaks for it."""
    return {pair: max(own, second.get(pair, own), key=lambda ratio: ratio.ratio) for pair, own in first.items()}


def table(verdicts: Iterable[Verdict]) -> str:
    """A line a pair."""
    lines = [f"{'':9} {'now':>8} {'baseline':>8} {'at least':>8}  others' time ÷ ours"]
    for each in verdicts:
        numbers = each.now and each.now.ratio, each.before and each.before.ratio, each.least
        cells = " ".join(f"{'' if number is None else f'{number:.2f}x':>8}" for number in numbers)
        lines.append(f"{each.word:9} {cells}  {each.pair}")
    return "\n".join(lines)


def failed(verdicts: Iterable[Verdict]) -> bool:
    """Is a pair worse, or was one of the baseline's not timed?"""
    return any(verdict.word in ("worse", "not timed") for verdict in verdicts)


def _time(tests: Sequence[str]) -> list[Benchmark]:
    with TemporaryDirectory() as folder:
        result = Path(folder) / "benchmarks.json"
        options = ["-q", "-m", "benchmark", "--benchmark-only", "-p", "no:xdist", f"--benchmark-json={result}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *tests, *options, "--benchmark-columns=median,iqr,rounds"]
        )
        if done.returncode:
            sys.exit(done.returncode)
        found: list[Benchmark] = json.loads(result.read_text(encoding="utf-8"))["benchmarks"]
        return found


def _write(ratios: Mapping[str, Ratio]) -> None:
    origin = provenance() | {"command": "python -m tests.benchmarks.ratios --write"}
    rounded = {pair: {name: round(x, 4) for name, x in asdict(own).items()} for pair, own in ratios.items()}
    BASELINE.write_text(json.dumps(origin | {"ratios": rounded}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {BASELINE}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Time and compare, or write the baseline; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.ratios", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--write", action="store_true", help=f"write {BASELINE} instead of comparing with it")
    write = parser.parse_args(arguments).write
    benchmarks = _time([SUITE])
    now = pairs(benchmarks)
    if write:
        _write(now)
        return 0
    committed = json.loads(BASELINE.read_text(encoding="utf-8"))
    baseline = {pair: Ratio(**fields) for pair, fields in committed["ratios"].items()}
    here = provenance()["machine"]
    verdicts = judge(now, baseline)
    if committed["machine"] != here:
        print(f"{table(verdicts)}\nnot judged: the baseline is of {committed['machine']}, this is {here}; use --write")
        return 0
    if again := suspects(verdicts, benchmarks):
        print(f"{table(verdicts)}\ntiming {len(again)} tests again\n")
        verdicts = judge(better_of(now, pairs(_time(again))), baseline)
    print(f"{table(verdicts)}\nbaseline of {committed['commit']}, {committed['versions']}; write it anew with --write")
    return int(failed(verdicts))


if __name__ == "__main__":
    sys.exit(main())

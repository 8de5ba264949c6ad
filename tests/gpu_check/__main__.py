"""Check the Triton kernels on this machine's GPU and time them: parity, behaviour on a GPU, times beside others', training.

    PYTHONPATH=typings python3 -m tests.gpu_check [--out FILE.json] [--only SECTION ...]

The kernels' part needs this repository, python3, torch, triton and pytest; training also what `smallgpt train` needs, and
is skipped where that is missing. Every section runs in a process of its own: a kernel that breaks a CUDA context ends one
section, not the check. Writes one JSON. Exit code: 1 where a kernel is wrong or a section broke, 6 without a GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.gpu_check import decoding, parity, timings, training

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 480
"""For everything; a section that would go beyond is stopped."""

SECTIONS = {
    "parity": parity.run,
    **{operation: timings.of(operation) for operation in timings.CASES},
    "decoding": decoding.run,
    "training": training.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections, print what they find, and write the JSON."""
    options = _options(arguments)
    import torch

    if not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} sees no GPU; nothing was checked", file=sys.stderr)
        return 6
    if options.section is not None:
        result = SECTIONS[options.section]()
        options.out.write_text(json.dumps(result))
        return 0
    from smallgpt.infrastructure.provenance import provenance

    report: dict[str, Any] = {**provenance(), "device": _device()}
    for what, words in report.items():
        print(f"{what:10} {words}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + SECONDS
    report["sections"] = {}
    for name in options.only or SECTIONS:
        print(f"\n== {name}", flush=True)
        report["sections"][name] = _in_own_process(name, deadline - time.monotonic())
        options.out.write_text(json.dumps(report, indent=2) + "\n")  # after each: what is known is kept
    report["passed"] = all(section["passed"] for section in report["sections"].values())
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    _conclude(report, options.out)
    return 0 if report["passed"] else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu-check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check.json"), metavar="FILE.json")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)  # the child's side
    return parser.parse_args(arguments)


def _in_own_process(name: str, seconds: float) -> dict[str, Any]:
    """What the section returns, and how long it took; or, with passed false, how it broke."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "section.json"
        command = [sys.executable, "-m", "tests.gpu_check", "--section", name, "--out", str(out)]
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        child = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code = child.wait(max(seconds, 1))
            broke = f"the process ended with exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            broke = f"stopped: the whole check takes at most {SECONDS} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # with what it started
            child.wait()
        result = json.loads(out.read_text()) if broke is None else {"passed": False, "broke": broke}
    if broke:
        print(broke)
    return {**result, "seconds": round(time.monotonic() - start, 1)}


def _device() -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "cuda": torch.version.cuda or f"HIP {torch.version.hip}",
    }


def _conclude(report: dict[str, Any], out: Path) -> None:
    print("\n== in short")
    for name, section in report["sections"].items():
        met = [target["met"] for target in section.get("targets", [])]
        targets = f", {sum(met)} of {len(met)} targets met" if met else ""
        verdict = section.get("skipped") or ("passed" if section["passed"] else "FAILED")
        print(f"{name:22} {verdict}{targets}, {section['seconds']:.0f} s")
    print(f"written to {out}")


if __name__ == "__main__":
    sys.exit(main())

"""The kernels' own tests on the GPU, in every dtype, by pytest alone: the project's conftest and its plugins stay out."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/kernels/fused"
BARE = ["-c", "/dev/null", "--rootdir", ".", "--confcutdir", TESTS, "-p", "no:cacheprovider"]
"""pytest's flags for a machine that has nothing but torch, triton and pytest."""


def run() -> dict[str, Any]:
    """Run them all and say which failed: passed, counts, failures (with the assertion), and the seconds of every test."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", *BARE, TESTS, "-q", "--no-header", "--tb=short", f"--junitxml={log}"]
        code = subprocess.run(command, cwd=ROOT).returncode
        if not log.exists():
            return {"passed": False, "broke": f"pytest ended with exit code {code} before any test"}
        tests = read(log)
    counts = Counter(test["outcome"] for test in tests)
    failures = [test for test in tests if test["outcome"] == "failed"]
    return {"passed": code == 0 and not failures, "counts": counts, "failures": failures, "tests": tests}


def read(log: Path) -> list[dict[str, Any]]:
    """The cases of a JUnit file: name, outcome (passed, failed, skipped), seconds, and the message of what did not pass."""
    tests = []
    for case in ElementTree.parse(log).iter("testcase"):
        bad = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped")
        outcome = "failed" if bad else "skipped" if skipped is not None else "passed"
        message = bad[0].get("message") if bad else None if skipped is None else skipped.get("message")
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        tests.append({"test": name, "outcome": outcome, "seconds": float(case.get("time", 0)), "message": message})
    return tests

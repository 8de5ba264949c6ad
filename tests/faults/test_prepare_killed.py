"""`smallgpt prepare` killed again and again: nothing half done can be read, and what comes out in the end is the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.token_store import open_store
from smallgpt.infrastructure.verifying import verify_store

KILLS = 50
STAGES = ["lock", "tokenizer.json", "*.growing", "*.part.json", "whole", "whole/*.bin", "done"]
"""Files of a draft whose appearance tells how far the work is; the instant is some time after one of them."""
# Parts of 20 kB, so that an instant falls between any two files.
COMMAND = """
import sys
from smallgpt.infrastructure.corpora import planning
planning.PART_BYTES = 20_000
from smallgpt.interfaces.cli import main
main()
"""


def start(out: Path, corpus: Path, *words: str) -> "subprocess.Popen[str]":
    size = [] if "--tokenizer=bytes" in words else ["--vocab-size=300"]  # of an own BPE
    prepare = ["prepare", "text", str(corpus), "--out", str(out), "--workers=2", *size, *words]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *prepare], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    pick = random.Random(0).choice
    path = tmp_path / "stories.jsonl"
    texts = (
        f"Once {pick(['Tom', 'Mia'])} had a {pick(['kite', 'dog'])} and {n} hats - héllo. " * 9 for n in range(1500)
    )
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def children(process: int) -> list[int]:
    """Of a process, by number."""
    try:
        return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def gone(processes: Sequence[int], seconds: float = 5.0) -> bool:
    """Whether they all end within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(_alive(process) for process in processes):
            return True
        time.sleep(0.01)
    return False


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def finish(process: "subprocess.Popen[str]") -> None:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_killed_at_any_instant_it_goes_on_to_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    whole, chance = tmp_path / "whole", random.Random(1)
    finish(start(whole, corpus))
    expected = contents(whole)
    kills = rounds = kept = 0
    while kills < KILLS:
        out = tmp_path / f"out-{rounds}"
        rounds += 1
        while True:
            running = start(out, corpus)
            draft = tmp_path / f".{out.name}.draft"
            awaited = chance.choice(STAGES)
            while not list(draft.glob(awaited)) and running.poll() is None:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.15))
            if running.poll() is not None:
                running.communicate(timeout=60)  # it was faster, or found a folder whose draft it could only remove
                break
            workers = children(running.pid)
            # mostly the command itself; now and then one of its workers, which it must outlive in good order
            if workers and chance.random() < 0.15:
                os.kill(chance.choice(workers), signal.SIGKILL)
                running.communicate(timeout=60)
            else:
                running.kill()
                running.communicate(timeout=60)
                assert gone(workers)
            kills += 1
            kept += bool(list(draft.glob("*.part.json")))
            if out.exists():
                assert contents(out) == expected, "a folder that is there is whole"
            else:
                with pytest.raises(DataError, match="no such data folder"):
                    open_store(out)
                with pytest.raises(DataError, match="not a data folder"):
                    open_store(draft)
            if kills >= KILLS:
                break
        if not out.exists():
            finish(start(out, corpus))
        verify_store(out)
        assert contents(out) == expected
    assert kept > KILLS / 5, "the instants were spread over the work"


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept_and_overwriting_survives_a_kill(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finish(start(out, corpus, "--tokenizer=bytes"))
    before = contents(out)
    running = start(out, corpus, "--overwrite")
    while not list(tmp_path.glob(".out.draft/*.part.json")):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "finished parts are kept; the same command goes on from there" in err
    assert "Traceback" not in err
    assert contents(out) == before
    finish(start(out, corpus, "--overwrite"))
    assert verify_store(out).vocab_size == 300

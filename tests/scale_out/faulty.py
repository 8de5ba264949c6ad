"""`smallgpt`, in one process of which something goes wrong: started by torchrun, with the fault in FAULT as JSON.

{"rank", "step", "where": forward | all-reduce | evaluate | save, "how": kill | raise | hang | nan | terminate | outlast}; or
{"rank", "words"}: that process gets these words besides. With {"stamp": FILE} it writes the time there when it fails, and
with {"pace": SECONDS} every process takes that much longer for a step. A process that outlasts is at it until its run has
been taken over by another.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from smallgpt.application import training
from smallgpt.application.step import Stepper
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.distributed import ProcessGroup
from smallgpt.infrastructure.run_lock import holder_of
from smallgpt.interfaces.cli import main

FAULT: dict[str, Any] = json.loads(os.environ["FAULT"])
STEP = [-1]


def fail(model: GPT | None = None) -> None:
    if "stamp" in FAULT:
        Path(FAULT["stamp"]).write_text(str(time.time()))
    match FAULT["how"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        case "hang":
            time.sleep(600)
        case "outlast":
            run = Path(sys.argv[sys.argv.index("--out") + 1])
            before = holder_of(run)
            while holder_of(run) == before:
                time.sleep(0.05)
        case "raise":
            raise ZeroDivisionError("only here")
        case "nan":
            assert model is not None
            with torch.no_grad():
                model.transformer.ln_f.weight.fill_(torch.nan)


def at(owner: Any, name: str, *, armed: bool = True) -> None:
    """Before `name` of `owner` is called at the fault's step."""
    usual = getattr(owner, name)

    def faulty(self: Any, *arguments: Any, **options: Any) -> Any:
        if FAULT["step"] == STEP[0]:
            STEP[0] = -1  # once
            fail(getattr(self, "model", None))
        return usual(self, *arguments, **options)

    setattr(owner, name, faulty)


def count_steps() -> None:
    usual = Stepper.start

    def start(self: Stepper, step: int, batches: Any) -> Any:
        STEP[0] = step
        time.sleep(FAULT.get("pace", 0))
        return usual(self, step, batches)

    Stepper.start = start  # type: ignore[method-assign]


count_steps()
mine = int(os.environ["RANK"]) == FAULT["rank"] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
if mine and "words" in FAULT:
    sys.argv += FAULT["words"]
elif mine:
    places: dict[str, tuple[Any, str]] = {
        "forward": (Stepper, "_compute"),
        "all-reduce": (ProcessGroup, "sum"),
        "evaluate": (training.Loop, "_evaluate"),
        "save": (training.Loop, "_save"),
    }
    at(*places[FAULT["where"]])
main()

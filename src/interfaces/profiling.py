"""`--profile N`: some steps of a run recorded, taken apart, and written into the run folder."""

import gzip
import json
from dataclasses import asdict
from pathlib import Path

from smallgpt.application.step_profile import PART, STEP, Ceilings, analyse
from smallgpt.application.trace_events import read_events
from smallgpt.application.training import Loop
from smallgpt.domain.errors import ConfigError
from smallgpt.infrastructure.files import write_json
from smallgpt.infrastructure.profiling import WARMUP_STEPS, StepRecorder
from smallgpt.kernels.timing import copy_bandwidth


def recording(loop: Loop, steps: int, run: Path, *, compiled: bool) -> StepRecorder:
    """A context in which loop.run() records `steps` steps into RUN/profile: trace.json.gz and operations.json.

    A "profile" event names the two. A compiled model's parts are not told apart. Raises ConfigError when the run is too
    short.
    """
    check_length(steps, loop.stepper.total_steps - loop.step)
    folder = run / "profile"

    def done(recorded: StepRecorder) -> None:
        with gzip.open(recorded.trace, "rt", encoding="utf-8") as file:
            events = read_events(json.load(file))
        found = analyse(events, Ceilings(loop.peak_flops, copy_bandwidth(loop.stepper.device)))
        plain = 1e3 * min(recorded.plain_seconds)
        write_json(folder / "operations.json", {"unrecorded_step_milliseconds": plain, **asdict(found)})
        loop.tracker.log(
            {
                "event": "profile",
                "step": loop.step,
                "steps": found.steps,
                "trace": str(recorded.trace),
                "operations": str(folder / "operations.json"),
            }
        )

    model = None if compiled else loop.stepper.model
    recorder = StepRecorder(model, steps, folder / "trace.json.gz", step_name=STEP, part_prefix=PART, done=done)
    loop.around_step, loop.batches = recorder.step, recorder.batches(loop.batches)
    return recorder


def check_length(steps: int, left: int) -> None:
    """Raises ConfigError when a run of `left` more steps is too short to record `steps` of them."""
    if WARMUP_STEPS + steps > left:
        raise ConfigError(
            f"--profile {steps} needs {WARMUP_STEPS} steps to warm up and {steps} to record; this run has {left} to go.\n"
            "Profile fewer steps, or raise --training.max-steps."
        )

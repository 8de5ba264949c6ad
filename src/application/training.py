"""The training loop: step, save, look, until the planned step or a request to stop.

What happens at step s depends on the configuration and s alone, so a run that was cut off anywhere and resumed writes the
same numbers as one that was not: a checkpoint is taken right after its step, and what is due at that step is done again.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import inf
from typing import Any

from smallgpt.application.ports import Batches, Checkpoints, Tracker
from smallgpt.application.saves import Saves
from smallgpt.application.step import Stepper
from smallgpt.application.step_result import Running, StepResult
from smallgpt.domain.config import steps_of
from smallgpt.domain.errors import NumericsError
from smallgpt.domain.flops import flops_per_token
from smallgpt.domain.gpt import GPT
from smallgpt.domain.metrics import Score
from smallgpt.domain.state import TrainingState


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    reason: str
    """finished, or interrupted."""
    seconds: float
    """Wall clock of the loop over all its sittings, final evaluation not included."""
    final: Score | None
    """Over the whole validation split; None when interrupted."""


@dataclass(frozen=True)
class Look:
    """How the loop looks at the model; neither may change what training reads."""

    evaluate: Callable[[GPT, AbstractContextManager[Any], bool], Score]
    """(model, precision context, whole split?) -> score."""
    sample: Callable[[GPT, int], dict[str, Any]]
    """(model, step) -> {"prompt", "text"}."""


class Loop:
    """A run in progress."""

    def __init__(
        self,
        stepper: Stepper,
        batches: Batches,
        checkpoints: Checkpoints,
        tracker: Tracker,
        look: Look,
        *,
        should_stop: Callable[[], bool],
        peak_flops: float,
        memory: Callable[[], int],
        started: float | None = None,
        compiled: bool = False,
        around_step: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.stepper, self.batches, self.checkpoints = stepper, batches, checkpoints
        self.saves = Saves(checkpoints, tracker)
        self.tracker, self.look, self.should_stop = tracker, look, should_stop
        self.peak_flops, self.memory, self.around_step = peak_flops, memory, around_step
        self.step = self.tokens = self.skipped_in_a_row = self.skipped = 0
        self.running: Running | None = None
        self.settled_at = time.perf_counter()
        self.compiled = compiled
        self.paced_from: tuple[int, float] | None = None
        """Step and time (perf_counter) at which the first step of this sitting had ended."""
        self.best: float | None = None
        self.started = time.perf_counter() if started is None else started

    @property
    def seconds(self) -> float:
        """Wall clock so far, earlier sittings included."""
        return time.perf_counter() - self.started

    def restore(self, state: TrainingState) -> None:
        """Go on from a checkpoint."""
        loop = state.loop
        self.stepper.restore((state.weights, state.optimizer), loop["scaler"], shares=state.shares)
        self.step, self.tokens, self.best = state.step, loop["tokens"], loop["best"]
        self.skipped, self.skipped_in_a_row = loop["skipped"], loop["skipped_in_a_row"]
        self.started -= loop["seconds"]
        self.saves.last_good = f"the one of step {self.step}"

    def run(self) -> Outcome:
        """Train to the planned step. Raises NumericsError after max_skipped bad steps in a row, and CheckpointError."""
        with self.saves.finished_after():
            return self._train()

    def _train(self) -> Outcome:
        saved_at = self.step if self.step else -1
        while True:
            done, stop = self.step == self.stepper.total_steps, self.stepper.processes.any(self.should_stop())
            if done or stop:
                self._settle()
            if (done or stop) and saved_at != self.step:
                self._save()
            if done or stop:
                self.saves.finish()  # before any evaluation: a finished model must not be lost to a failing one
            if done or not stop:
                self._look_if_due()
            if done or stop:
                return self._end(finished=done)
            self._train_one_step()
            self.saves.record()
            if self._something_due():
                self._settle()
            if self._checkpoint_due():
                self._save()
                saved_at = self.step

    def _train_one_step(self) -> None:
        """Queue a step, then hear what the one before it did: a GPU has work while the host reads and writes."""
        if self.running is None:
            self.settled_at = time.perf_counter()
        with self.around_step():
            running = self.stepper.start(self.step, self.batches)
            self.step += 1
        self._settle()
        self.running = running
        if not running.on_gpu:
            self._settle()

    def _settle(self) -> None:
        """Wait for the step that was queued last, and write down what it did."""
        if self.running is None:
            return
        steps, result, self.running = self.running.step + 1, self.running.result(), None
        now = time.perf_counter()
        if self.paced_from is None:
            self.tracker.log({"event": "first_step", "step": steps, "seconds": now - self.settled_at})
            self.paced_from = (steps, now)
        self.tokens += result.tokens
        self.tracker.log(self._train_event(steps, result, now - self.settled_at))
        self.settled_at = now
        self._guard(steps, result)

    def _train_event(self, steps: int, result: StepResult, seconds: float) -> dict[str, Any]:
        rate = result.tokens / seconds
        event = {
            "event": "train",
            "step": steps,
            "loss": result.loss,
            "learning_rate": result.learning_rate,
            "grad_norm": result.grad_norm,
            "tokens": self.tokens,
            "tokens_per_second": rate,
            "memory_bytes": self.memory(),
            "seconds": self.seconds,
            "eta_seconds": self._pace(steps, seconds) * (self.stepper.total_steps - steps),
        }
        model = self.stepper.model
        if all(parameter.requires_grad for parameter in model.parameters()):  # a step beside frozen parts does less
            event["mfu"] = rate * flops_per_token(model.config) / self.peak_flops
        if self.stepper.scaler.is_enabled():
            event["loss_scale"] = result.loss_scale
        return event

    def _pace(self, steps: int, seconds: float) -> float:
        """Seconds a step since the first one of this sitting, with all that was looked at and saved; at first that one's."""
        first, ended = self.paced_from or (steps, 0.0)
        return (time.perf_counter() - ended) / (steps - first) if steps > first else seconds

    def _guard(self, steps: int, result: StepResult) -> None:
        """Count skipped updates, and give up when they do not end."""
        if result.bad_tensor is None:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        self.tracker.log(
            {"event": "skip", "step": steps, "tensor": result.bad_tensor, "in_a_row": self.skipped_in_a_row}
        )
        if self.skipped_in_a_row >= self.stepper.config.training.max_skipped:
            self.saves.finish()  # or an older checkpoint would be named
            raise NumericsError(
                f"{self.skipped_in_a_row} steps in a row were not finite, the last at step {steps}; first bad tensor: "
                f"{result.bad_tensor}.\nLast good checkpoint: {self.saves.last_good}. Try a lower --optimizer.learning-rate "
                "or --training.precision fp32."
            )

    def _due(self, amount: float) -> bool:
        every = steps_of(amount, self.stepper.total_steps)
        return every > 0 and self.step % every == 0

    def _something_due(self) -> bool:
        """Whether anything but the next step is to be done now, for which what the last one did must be known."""
        config = self.stepper.config
        return any(
            self._due(every)
            for every in (config.checkpoint.every, config.evaluation.every, config.evaluation.sample_every)
        )

    def _checkpoint_due(self) -> bool:
        """Never among bad steps: they add nothing, and broken weights would push the good checkpoints out."""
        return self.step > 0 and not self.skipped_in_a_row and self._due(self.stepper.config.checkpoint.every)

    def _look_if_due(self) -> None:
        """Validation and sample of this step; the best checkpoint so far, all judged on the same tokens, is marked."""
        config, ended = self.stepper.config, self.step == self.stepper.total_steps
        saved = self._checkpoint_due() or ended
        if saved or self._due(config.evaluation.every):
            score = self._evaluate(whole=False)
            if saved and score.nats_per_token < (inf if self.best is None else self.best):
                self.best = score.nats_per_token
                self.checkpoints.mark_best(self.step)
        if self._due(config.evaluation.sample_every) or (ended and config.evaluation.sample_every):
            sample = self.look.sample(self.stepper.model, self.step)
            self.tracker.log({"event": "sample", "step": self.step, **sample})

    def _evaluate(self, *, whole: bool) -> Score:
        score = self.look.evaluate(self.stepper.model, self.stepper.autocast(), whole)
        self.tracker.log({"event": "validation", "step": self.step, **score.as_dict(), "final": whole})
        return score

    def _save(self) -> None:
        start = time.perf_counter()
        loop = {
            "scaler": self.stepper.scaler.state_dict(),
            "total_steps": self.stepper.total_steps,
            "tokens": self.tokens,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "best": self.best,
            "seconds": self.seconds,
            "compiled": self.compiled,
        }
        shares = self.checkpoints.shards
        state = TrainingState(self.step, *self.stepper.state(shares=shares), loop, shares)
        self.saves.save(state, start)

    def _end(self, *, finished: bool) -> Outcome:
        seconds = self.seconds
        final = self._evaluate(whole=True) if finished else None
        self.saves.finish()  # the mark of the best one too
        reason = "finished" if finished else "interrupted"
        end = {"event": "end", "step": self.step, "seconds": seconds, "reason": reason, "memory_bytes": self.memory()}
        self.tracker.log(end)
        return Outcome(self.step, reason, seconds, final)


def plan_steps(stepper: Stepper, batches: Batches, look: Look, max_minutes: float, started: float) -> tuple[int, str]:
    """How many steps fit into max_minutes, counted from `started` (perf_counter): (steps, how that was found).

    Some steps, one evaluation and one sample are timed; then weights are put back, so that the run itself starts afresh
    with a stepper of its own.
    """
    budget, agreed = 60 * max_minutes, stepper.processes.of_first
    weights = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    for step in range(stepper.warm_up):
        stepper(step, batches)
    times: list[float] = []
    trial_end = time.perf_counter() + 0.02 * budget
    while len(times) < 3 or (agreed(time.perf_counter() < trial_end) and len(times) < 50):
        times.append(_timed(lambda: stepper(1 + len(times), batches)))
    evaluation = _timed(lambda: look.evaluate(stepper.model, stepper.autocast(), False))
    sample = _timed(lambda: look.sample(stepper.model, 0))
    stepper.model.load_state_dict(weights)

    config = stepper.config
    a_step = sorted(times)[len(times) // 2]
    looks = evaluation * _times_a_run(config.evaluation.every) + sample * _times_a_run(config.evaluation.sample_every)
    left = budget - (time.perf_counter() - started) - looks
    steps = agreed(max(1, int(0.98 * left / a_step)))
    return steps, f"{1000 * a_step:.0f} ms a step, {looks:.0f} s for evaluation and samples, within {budget:.0f} s"


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _times_a_run(amount: float) -> float:
    """How often a "steps or share" amount comes up, for shares; a count in steps is unknown before the plan."""
    return 1 + 1 / amount if 0 < amount < 1 else 1.0

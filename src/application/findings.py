"""What a diagnosis is made of: a finding, and the record of a run that the checks read."""

from dataclasses import dataclass
from functools import cached_property
from math import isfinite, nan
from typing import Any, Literal

from smallgpt.domain.config import DEFAULT_STEPS, RunConfig

LINES = ("uniform", "unigram", "bigram", "trigram")
"""The n-gram tables a loss is compared with, weakest first."""


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing about a run, in plain words."""

    severity: Literal["problem", "warning", "note"]
    """problem: the result suffers; warning: it may; note: good to know."""
    title: str
    evidence: str
    """The numbers that show it."""
    remedy: str
    """What to do, naming the flag."""


@dataclass(frozen=True)
class RunRecord:
    """A run's configuration, the events of its metrics.jsonl and, when the data is at hand, its dataset.json."""

    config: RunConfig
    events: list[dict[str, Any]]
    manifest: dict[str, Any] | None

    @cached_property
    def train(self) -> list[dict[str, Any]]:
        """Training events in step order; a step that was done again after a resume counts once."""
        by_step = {event["step"]: event for event in self.of_kind("train")}
        return [by_step[step] for step in sorted(by_step)]

    @cached_property
    def losses(self) -> list[float]:
        """Nats per token as optimised, NaN where the loss was not a number."""
        return [number(event, "loss") for event in self.train]

    @cached_property
    def start(self) -> dict[str, Any]:
        """The last start event; empty when the run never began."""
        return (self.of_kind("start") or [{}])[-1]

    @property
    def steps_done(self) -> int:
        return int(self.train[-1]["step"]) if self.train else 0

    @property
    def steps_planned(self) -> int:
        """As fixed by the timing of the first steps, else as configured."""
        plans = self.of_kind("plan")
        measured = plans[-1]["steps"] if plans else self.start.get("planned_steps")
        return int(measured or self.config.training.max_steps or DEFAULT_STEPS)

    @property
    def finished(self) -> bool:
        ends = [event for event in self.events if event["event"] in ("start", "end")]
        return bool(ends) and ends[-1].get("reason") == "finished"

    @cached_property
    def validations(self) -> list[dict[str, Any]]:
        """Passes with a finite loss, in the order they were made."""
        return [event for event in self.of_kind("validation") if isfinite(number(event, "nats_per_token"))]

    @property
    def last_validation(self) -> dict[str, Any] | None:
        """The last pass over what was trained: one before any step says nothing of a run that has gone on since."""
        last = self.validations[-1] if self.validations else None
        return None if last is None or (last["step"] == 0 and self.steps_done > 0) else last

    @property
    def last_score(self) -> float:
        """Nats per token of the last pass over what was trained; NaN where there is none."""
        return float("nan") if self.last_validation is None else number(self.last_validation, "nats_per_token")

    @property
    def comparable_validations(self) -> list[dict[str, Any]]:
        """In-loop passes, which all go over the same tokens; the final pass may cover more and is left out then."""
        if not self.validations:
            return []
        tokens = self.validations[0].get("tokens")
        return [event for event in self.validations if event.get("tokens") == tokens]

    @property
    def baselines(self) -> dict[str, float]:
        """Nats per token of the n-gram tables, weakest first; empty when unknown."""
        known = self.start.get("baselines") or (self.manifest or {}).get("baselines") or {}
        return {line: float(known[line]) for line in LINES if known.get(line) is not None}

    def split(self, name: str) -> dict[str, Any] | None:
        """A split's part of dataset.json, or None."""
        found: dict[str, Any] | None = ((self.manifest or {}).get("splits") or {}).get(name)
        return found

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("event") == kind]


def number(event: dict[str, Any], key: str) -> float:
    """A value as a float, NaN when it is missing or null."""
    value = event.get(key)
    return nan if value is None else float(value)


def standing(loss: float, baselines: dict[str, float]) -> str:
    """Where a loss (nats per token) stands among the n-gram lines, and what that means.

    >>> standing(2.0, {"uniform": 7.6, "unigram": 5.5, "bigram": 3.8, "trigram": 3.4})
    'below the trigram line (3.40): the model uses more than two tokens of context'
    """
    if not isfinite(loss):
        return "not a number: nothing can be said"
    meaning = {
        "uniform": "the model knows which tokens occur at all",
        "unigram": "the model knows more than how often each token occurs",
        "bigram": "the model uses more than the token before",
        "trigram": "the model uses more than two tokens of context",
    }
    beaten = [line for line in LINES if line in baselines and loss < baselines[line]]
    if beaten:
        return f"below the {beaten[-1]} line ({baselines[beaten[-1]]:.2f}): {meaning[beaten[-1]]}"
    if "uniform" in baselines:
        return f"not below the uniform line ({baselines['uniform']:.2f}): the model does no better than guessing"
    return "no n-gram lines to compare with"

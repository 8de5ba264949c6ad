"""A run on the console: a live status line on a terminal, a plain line about every ten seconds elsewhere."""

import json
import os
import sys
import time
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.text import Text

from smallgpt.interfaces.cli import profile_table
from smallgpt.interfaces.phases import in_words

SECONDS_BETWEEN_LINES = 10.0

ORDER = ("step", "loss", "validation", "learning_rate", "grad_norm", "speed", "mfu", "memory", "eta")

# What a loss below each line means.
MEANINGS = {
    "uniform": "it knows more than that there are tokens",
    "unigram": "it knows how often each token occurs",
    "bigram": "it uses the token before",
    "trigram": "it uses more than the two tokens before",
}


class PatientConsole(Console):
    """A console whose reader may leave (`| head`): it falls silent, and the run that it shows goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Display:
    """Shows events as they come: an application.ports.Tracker, and a context that leaves the terminal in order."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        live = console.is_terminal and not console.is_dumb_terminal
        self.live = Live(console=console, refresh_per_second=4, transient=True) if live else None
        self.steps: int | None = None
        self.facts: dict[str, str] = {}
        self.lines: dict[str, float] = {}
        self.average: float | None = None
        self.last_line = -SECONDS_BETWEEN_LINES
        self.planned: int | None = None
        self.held, self.on_cpu = 0, True

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def log(self, event: dict[str, Any]) -> None:
        """Show one event; kinds that have nothing to show pass by."""
        show = getattr(self, f"_show_{event['event']}", None)
        if show is not None:
            show(event)

    def say(self, words: str | Text) -> None:
        """Print above the status, as it is: no markup, and no line ends that would spoil a command to be copied."""
        self.console.print(Text(words) if isinstance(words, str) else words, soft_wrap=True)

    def _show_start(self, event: dict[str, Any]) -> None:
        self.steps = event["planned_steps"]
        length = f"{self.steps:,} steps" if self.steps else "steps are being timed"
        ids = event.get("token_ids", event["vocab_size"])
        padding = f" (padded to {event['vocab_size']:,})" if ids < event["vocab_size"] else ""
        self.say(
            f"model    {_amount(event['parameters'])} parameters, {ids:,} tokens in the vocabulary{padding}; "
            f"{event['tokens_per_step']:,} tokens a step, {length}"
        )
        self._show_fine_tuning(event)
        self.say(f"data     {event['data']}")
        threads = "1 thread" if event["threads"] == 1 else f"{event['threads']} threads"
        self.say(f"machine  {event['device']}, {threads}, {event['precision']}")
        for what, reason in event["reasons"].items():
            self.say(Text(f"         {what.replace('_', ' ')}: {reason}", style="dim"))
        self._show_memory_plan(event)
        if event.get("resumed_from") is not None:
            self.say(f"resumed  from step {event['resumed_from']:,}")
        if "startup_seconds" in event:
            self.say(f"start    {in_words(event['startup_seconds'])}")
        if event["baselines"]:
            self.lines = {name: event["baselines"][name] for name in MEANINGS if name in event["baselines"]}
            self.say(f"compare  {baseline_words(event['baselines'])}")

    def _show_fine_tuning(self, event: dict[str, Any]) -> None:
        if event.get("init"):
            self.say(f"init     from {event['init']}")
        trained = event.get("trained_parameters", event["parameters"])
        if trained < event["parameters"]:
            self.say(f"trains   {_amount(trained)} of {_amount(event['parameters'])} parameters")

    def _show_note(self, event: dict[str, Any]) -> None:
        self.say(f"note     {event['words']}")

    def _show_memory_plan(self, event: dict[str, Any]) -> None:
        parts = event.get("memory_plan")
        if not parts:
            return
        self.planned, self.held, self.on_cpu = sum(parts.values()), event["memory_before"], event["device"] == "cpu"
        biggest_first = sorted(parts, key=parts.__getitem__, reverse=True)
        words = ", ".join(f"{name.replace('_', ' ')} {size(parts[name])}" for name in biggest_first)
        self.say(f"memory   {size(self.planned)} planned, at its most: {event['memory_plan_moment']}")
        self.say(Text(f"         {words}", style="dim"))

    def _show_end(self, event: dict[str, Any]) -> None:
        if self.planned is None:
            return
        measured = size(max(0, event["memory_bytes"] - self.held))
        # its resident size is all that a CPU process tells of its peak
        words = f"; the process grew by {measured}, libraries and unused gaps included"
        self.say(
            Text(
                f"memory   {size(self.planned)} planned{words if self.on_cpu else f', {measured} measured'}",
                style="dim",
            )
        )

    def _show_first_step(self, event: dict[str, Any]) -> None:
        """Said where it took longer than people wait without wondering."""
        if event["seconds"] > 5:
            self.say(
                f"note     the first step took {event['seconds']:.0f} s: memory was taken, and what is compiled was compiled"
            )

    def _show_plan(self, event: dict[str, Any]) -> None:
        self.steps = event["steps"]
        spent = f"; timed for {event['seconds']:.1f} s" if "seconds" in event else ""
        self.say(f"plan     {self.steps:,} steps: {event['reason']}{spent}")

    def _show_train(self, event: dict[str, Any]) -> None:
        self.facts.update(
            {
                "step": f"step {event['step']:,}" + (f"/{self.steps:,}" if self.steps else ""),
                "loss": f"loss {event['loss']:.3f}",
                "learning_rate": f"lr {event['learning_rate']:.1e}",
                "grad_norm": f"grad {event['grad_norm']:.2f}",
                "speed": f"{_amount(event['tokens_per_second'])} tok/s",
                **({"mfu": f"MFU {event['mfu']:.0%}"} if "mfu" in event else {}),
                "memory": size(event["memory_bytes"]),
                "eta": f"{_duration(event['eta_seconds'])} left",
            }
        )
        self._remark_on(event["loss"], event["step"])
        self._refresh(event["step"], last=event["step"] == self.steps)

    def _remark_on(self, loss: float, step: int) -> None:
        """Say when the loss, averaged over some ten steps, first falls below one of the n-gram lines."""
        if not isfinite(loss):
            return
        if self.average is None:  # lines that a resumed run starts below were remarked on before
            self.lines = {name: line for name, line in self.lines.items() if line < loss}
        self.average = loss if self.average is None else 0.9 * self.average + 0.1 * loss
        for name in [name for name, line in self.lines.items() if self.average < line]:
            line = self.lines.pop(name)
            self.say(
                Text(f"step {step:,}: the loss is below the {name} line ({line:.2f}): {MEANINGS[name]}", style="green")
            )

    def _refresh(self, step: int, *, last: bool) -> None:
        status = " · ".join(self.facts[name] for name in ORDER if name in self.facts)
        if self.live:
            bar = ProgressBar(total=self.steps, completed=step) if self.steps else ProgressBar(pulse=True)
            self.live.update(Group(bar, Text(status)))
        elif last or self.clock() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = self.clock()
            self.say(status)

    def _show_validation(self, event: dict[str, Any]) -> None:
        bits = event.get("bits_per_byte")
        in_bits = "" if bits is None else f", {bits:.3f} bits per byte"
        self.facts["validation"] = f"validation {event['nats_per_token']:.3f}{in_bits}"
        if event.get("final"):
            self.say(
                Text(
                    f"whole validation split: {event['nats_per_token']:.4f} nats per token{in_bits}, "
                    f"perplexity {event['perplexity']:.2f} ({event['tokens']:,} tokens)",
                    style="bold",
                )
            )
        else:
            self.say(f"step {event['step']:,}: {self.facts['validation']}")

    def _show_sample(self, event: dict[str, Any]) -> None:
        prompt = event["prompt"]
        continuation = event["text"].removeprefix(prompt)
        title = f"step {event['step']:,}"
        self.console.print(Rule(title, align="left", style="dim") if self.live else Text(f"--- {title}"))
        self.console.print(Text.assemble((prompt, "bold"), continuation), soft_wrap=self.live is None)

    def _show_skip(self, event: dict[str, Any]) -> None:
        count = event["in_a_row"]
        again = f", {count} in a row" if count > 1 else ""
        words = f"step {event['step']:,}: {event['tensor']} is not finite; update skipped{again}"
        self.say(Text(words, style="yellow"))

    def _show_profile(self, event: dict[str, Any]) -> None:
        found = json.loads(Path(event["operations"]).read_text(encoding="utf-8"))
        self.say(profile_table.in_words(found, self.console.width if self.console.is_terminal else None))
        self.say(f"profile  {event['trace']} (open it in ui.perfetto.dev), {event['operations']}")

    def _show_checkpoint(self, event: dict[str, Any]) -> None:
        self.say(Text(f"saved    {event['path']}", style="dim"))


def baseline_words(baselines: dict[str, float]) -> str:
    """The n-gram lines in a row: uniform 7.62 | unigram 5.90 | ..."""
    return " | ".join(f"{name} {baselines[name]:.2f}" for name in MEANINGS if name in baselines) + " nats/token"


def _amount(number: float) -> str:
    """1234567 -> 1.23 M"""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            value = number / size
            return f"{value:,.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes in words: 1234567 -> 1.23 MB"""
    return f"{_amount(number)}B" if number >= 1e3 else f"{number:.0f} B"


def _duration(seconds: float) -> str:
    """95 -> 1:35, 4000 -> 1:06:40"""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

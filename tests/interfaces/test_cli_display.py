"""What a run looks like on a console: plain lines, a live terminal, narrow and dumb ones."""

import io
import os
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from smallgpt.interfaces.cli.display import Display

START = {
    "event": "start",
    "step": 0,
    "device": "cpu",
    "threads": 2,
    "precision": "fp32",
    "reasons": {"precision": "no AMX [here]", "layer_norm": "torch: launched"},
    "parameters": 1_234_567,
    "planned_steps": 100,
    "tokens_per_step": 4096,
    "vocab_size": 2048,
    "data": "data/demo",
    "baselines": {"uniform": 7.62, "unigram": 6.0, "bigram": 4.0, "trigram": 3.0, "fitted_tokens": 99},
    "resumed_from": None,
}


def step(number: int, loss: float) -> dict[str, Any]:
    return {
        "event": "train",
        "step": number,
        "loss": loss,
        "learning_rate": 1e-3,
        "grad_norm": 0.5,
        "tokens": 4096 * number,
        "tokens_per_second": 12_345.0,
        "mfu": 0.31,
        "memory_bytes": 1.2e9,
        "seconds": 1.0,
        "eta_seconds": 3725.0,
    }


def shown(events: list[dict[str, Any]], *, terminal: bool = False, clock: Any = lambda: 0.0, **options: Any) -> str:
    file = io.StringIO()
    with Display(Console(file=file, force_terminal=terminal, **options), clock) as display:
        for event in events:
            display.log(event)
    return file.getvalue()


def test_the_start_says_what_runs_where_and_why_and_what_to_compare_with() -> None:
    text = shown([START])
    assert "1.23 M parameters, 2,048 tokens in the vocabulary; 4,096 tokens a step, 100 steps" in text
    assert "cpu, 2 threads, fp32" in text
    assert "precision: no AMX [here]" in text  # brackets are no markup
    assert "uniform 7.62 | unigram 6.00 | bigram 4.00 | trigram 3.00 nats/token" in text


def test_a_step_shows_every_number_on_one_plain_line() -> None:
    line = shown([START, step(10, 7.5)], width=20).splitlines()[-1]
    assert line == (
        "step 10/100 · loss 7.500 · lr 1.0e-03 · grad 0.50 · 12.3 k tok/s · MFU 31% · 1.2 GB · 1:02:05 left"
    )


def test_plain_lines_come_every_ten_seconds_and_at_the_end() -> None:
    times = iter(range(1000))
    text = shown([START, *[step(n, 7.0) for n in range(1, 101)]], clock=lambda: float(next(times)))
    lines = [line for line in text.splitlines() if line.startswith("step") and "tok/s" in line]
    assert lines[0].startswith("step 1/100")
    assert lines[-1].startswith("step 100/100")
    assert 8 <= len(lines) <= 12


def test_the_first_fall_below_a_line_is_remarked_once() -> None:
    text = shown([START, *[step(n, 8 - 0.1 * n) for n in range(1, 60)]])
    remarks = [line for line in text.splitlines() if "is below the" in line]
    assert [line.split("below the ")[1].split(" line")[0] for line in remarks] == [
        "uniform",
        "unigram",
        "bigram",
        "trigram",
    ]
    # averaged over some ten steps, so one lucky batch does not count
    assert shown([START, step(1, 8.0), step(2, 2.0), step(3, 8.0)]).count("is below the unigram") == 0


def test_a_resumed_run_does_not_repeat_remarks() -> None:
    text = shown([{**START, "resumed_from": 50}, *[step(n, 3.5) for n in range(51, 60)]])
    assert "resumed  from step 50" in text
    assert "is below the" not in text


def test_a_loss_that_is_not_finite_does_not_stop_the_show() -> None:
    text = shown([START, step(1, float("nan")), step(2, float("inf")), step(3, 7.0)])
    assert "loss nan" in text


def test_validation_sample_skip_plan_and_checkpoint_are_printed_as_they_come() -> None:
    score = {"nats_per_token": 1.5, "bits_per_byte": 0.75, "perplexity": 4.48, "tokens": 5000}
    text = shown(
        [
            START,
            {"event": "plan", "step": 0, "steps": 812, "reason": "220 ms a step"},
            {"event": "validation", "step": 20, **score, "final": False},
            {"event": "sample", "step": 20, "prompt": "Once [red]", "text": "Once [red] upon\na time"},
            {"event": "skip", "step": 21, "tensor": "gradient of transformer.wte.weight", "in_a_row": 2},
            {"event": "checkpoint", "step": 25, "path": "runs/x/checkpoints/step-00000025"},
            {"event": "validation", "step": 100, **score, "bits_per_byte": None, "final": True},
            {"event": "end", "step": 100, "seconds": 5.0, "reason": "finished"},
            step(30, 2.0),
        ]
    )
    assert "plan     812 steps: 220 ms a step" in text
    assert "step 20: validation 1.500, 0.750 bits per byte" in text
    assert "Once [red] upon\na time" in text
    assert "step 21: gradient of transformer.wte.weight is not finite; update skipped, 2 in a row" in text
    assert "runs/x/checkpoints/step-00000025" in text
    assert "whole validation split: 1.5000 nats per token, perplexity 4.48 (5,000 tokens)" in text
    assert "step 30/812 · loss 2.000" in text


@pytest.mark.parametrize("width", [20, 80])
def test_a_live_terminal_keeps_the_prints_and_takes_the_status_away(width: int) -> None:
    sample = {"event": "sample", "step": 5, "prompt": "Once", "text": "Once more"}
    text = shown([START, step(1, 7.0), sample, step(2, 6.9)], terminal=True, width=width, height=30)
    assert "Once" in text
    assert "1:02:05" in text  # the status
    assert "\x1b[?25l" in text  # the cursor is hidden while the status is live
    assert "\x1b[?25h" in text  # and shown again


def test_a_dumb_terminal_gets_plain_lines_and_no_color_is_heeded() -> None:
    environment = {"TERM": "dumb", "COLUMNS": "20"}
    assert "\x1b" not in shown([START, step(1, 7.0)], terminal=True, _environ=environment)
    colourless = shown([START, step(1, 7.0)], terminal=True, _environ={"TERM": "xterm", "NO_COLOR": "1"}, width=40)
    assert "\x1b[3" not in colourless.replace("\x1b[?", "")


def test_a_reader_that_leaves_does_not_stop_the_run() -> None:
    script = (
        "from smallgpt.interfaces.cli.display import Display, PatientConsole\n"
        "import sys\n"
        "with Display(PatientConsole()) as display:\n"
        "    for number in range(20000): display.say(f'line {number}')\n"
        "print('the run went on', file=sys.stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 0
    assert errors == "the run went on\n"


PLANNED = {
    "memory_plan": {"weights": 2_000_000, "activations": 7_000_000},
    "memory_plan_moment": "loss",
    "memory_before": 100,
}


def test_the_memory_plan_comes_before_the_first_step_and_the_measured_peak_after_the_last() -> None:
    end = {"event": "end", "step": 9, "memory_bytes": 10_000_100}
    on_gpu = shown([START | PLANNED | {"device": "cuda"}, end])
    assert "memory   9 MB planned, at its most: loss\n         activations 7 MB, weights 2 MB" in on_gpu
    assert on_gpu.splitlines()[-1] == "memory   9 MB planned, 10 MB measured"
    on_cpu = shown([START | PLANNED, end]).splitlines()
    assert on_cpu[-1] == "memory   9 MB planned; the process grew by 10 MB, libraries and unused gaps included"
    assert "memory" not in shown([START, end])

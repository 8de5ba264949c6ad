"""The report of one run: a page that stands alone, and says in words what its pictures show."""

from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from smallgpt.application.diagnosis import diagnose
from smallgpt.application.findings import Finding, RunRecord, number, standing
from smallgpt.infrastructure.files import write_atomically
from smallgpt.interfaces.report import plots
from smallgpt.interfaces.report.markup import bulk, duration, escaped, table, worded
from smallgpt.interfaces.report.record import read_record, run_of

MOST_SAMPLES = 12


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write report.html into the run folder (or to `out`) and return its path.

    The page fetches nothing: pictures are inline. Raises CheckpointError when the run cannot be read.
    """
    record = read_record(run)
    target = out or run_of(run) / "report.html"
    write_page(target, run_of(run).absolute().name, _body(run_of(run).absolute().name, record))
    return target


def write_page(target: Path, title: str, body: str) -> None:
    """Put a body into the page's frame and style, and write it as a whole."""
    frame = Template((resources.files("smallgpt.interfaces.report") / "page.html").read_text("utf-8"))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, frame.substitute(title=escaped(title), body=body))


def _body(name: str, record: RunRecord) -> str:
    findings = diagnose(record.config, record.events, record.manifest)
    sections = [
        f"<h1>{escaped(name)}</h1>",
        f"<p>{escaped(verdict(record))}</p>",
        _figures(record),
        "<h2>What the doctor says</h2>",
        "".join(map(_finding, findings)) or "<p>Nothing is wrong with this run.</p>",
        *_curves(record),
        *_samples(record),
        *_lines(record),
        *_machine(record),
        *_configuration(record),
    ]
    return "\n".join(sections)


def verdict(record: RunRecord) -> str:
    """How the run ended and where its loss stands, in one or two sentences."""
    if not record.train:
        return "No step has been trained yet."
    done, planned = record.steps_done, record.steps_planned
    steps = "1 step" if done == 1 else f"{done:,} steps"
    ended = f"Finished after {steps}." if record.finished else f"Stopped after {done:,} of {planned:,} steps."
    if record.last_validation is None:
        return f"{ended} There was no validation pass, so nothing says how it does on text it has not seen."
    at, last = int(record.last_validation["step"]), record.last_score
    when = "is" if at == done else f"was, at step {at:,},"
    return f"{ended} The validation loss {when} {last:.3f} nats a token, {standing(last, record.baselines)}."


def _figures(record: RunRecord) -> str:
    cells = {
        "validation loss, nats a token": _of_last(record, "nats_per_token", "{:.3f}"),
        "bits per byte": bits_per_byte(record),
        "perplexity": _of_last(record, "perplexity", "{:,.2f}"),
        "steps": f"{record.steps_done:,}",
        "tokens trained on": bulk(record.train[-1].get("tokens")) if record.train else "–",
        "time": duration(run_seconds(record)),
        "tokens per second": bulk(typical_speed(record)),
        "parameters": bulk(record.start.get("parameters")),
    }
    return f"<div class='figures'>{''.join(f'<div><b>{v}</b>{k}</div>' for k, v in cells.items())}</div>"


def bits_per_byte(record: RunRecord) -> str:
    """Of the last validation pass, with half its 95 % interval when known."""
    words = _of_last(record, "bits_per_byte", "{:.3f}")
    interval = (record.last_validation or {}).get("bits_per_byte_interval")
    return f"{words} ± {(interval[1] - interval[0]) / 2:.3f}" if interval and words != "–" else words


def run_seconds(record: RunRecord) -> float | None:
    """Wall clock of the loop."""
    timed = [event["seconds"] for event in (*record.train[-1:], *record.of_kind("end")[-1:]) if event.get("seconds")]
    return float(timed[-1]) if timed else None


def typical_speed(record: RunRecord) -> float | None:
    """Median tokens per second."""
    speeds = sorted(speed for e in record.train if (speed := number(e, "tokens_per_second")) > 0)
    return speeds[len(speeds) // 2] if speeds else None


def _of_last(record: RunRecord, key: str, form: str) -> str:
    last = (record.last_validation or {}).get(key)
    return "–" if last is None else form.format(last)


def _finding(finding: Finding) -> str:
    return (
        f"<div class='finding {finding.severity}'><p><b>{finding.severity}: {escaped(finding.title)}</b></p>"
        f"<p>{escaped(finding.evidence)}</p><p class='quiet'>{worded(finding.remedy)}</p></div>"
    )


def _curves(record: RunRecord) -> list[str]:
    if not record.train:
        return []
    drawings = [
        plots.bits_plot(record),
        plots.rate_plot(record),
        plots.norm_plot(record),
        plots.speed_plot(record),
    ]
    others = "".join(f"<div>{svg}</div>" for svg in drawings if svg)
    return ["<h2>Curves</h2>", f"<div class='plots'><div class='wide'>{plots.loss_plot(record)}</div>{others}</div>"]


def _samples(record: RunRecord) -> list[str]:
    samples = record.of_kind("sample")
    if not samples:
        return []
    last = len(samples) - 1
    shown = sorted({round(i * last / (MOST_SAMPLES - 1)) for i in range(MOST_SAMPLES)}) if last else [0]
    return ["<h2>The same prompt through the run</h2>", *(_sample(samples[i]) for i in shown)]


def _sample(event: dict[str, Any]) -> str:
    prompt, text = str(event.get("prompt", "")), str(event.get("text", ""))
    continuation = text.removeprefix(prompt) if text.startswith(prompt) else text
    lead = f"<b>{escaped(prompt)}</b>" if text.startswith(prompt) else ""
    return f"<div class='sample'><span class='quiet'>step {event['step']:,}</span><p>{lead}{escaped(continuation)}</p></div>"


def _lines(record: RunRecord) -> list[str]:
    if not record.baselines:
        return []
    last = record.last_score
    rows = [
        [name, f"{nats:.3f}", "yes" if last < nats else "no" if last >= nats else "–"]
        for name, nats in record.baselines.items()
    ]
    return [
        "<h2>Lines to compare with</h2>",
        "<p class='quiet'>Tables counted on the training tokens, scored on the validation split.</p>",
        table(["table", "nats a token", "beaten"], rows),
    ]


def _machine(record: RunRecord) -> list[str]:
    start = record.start
    if not start:
        return []
    peak = start.get("peak_flops")
    facts: dict[str, Any] = {key: start.get(key) for key in ("device", "threads", "precision")}
    facts |= start.get("reasons") or {}  # these repeat the choice, with its reason
    facts["measured matrix-product peak"] = f"{peak / 1e9:,.0f} GFLOP/s" if peak else None
    facts |= {key: start.get(key) for key in ("tokens_per_step", "data")}
    facts["resumed from step"] = start.get("resumed_from")
    for plan in record.of_kind("plan"):
        facts["length of the run"] = f"{plan['steps']:,} steps: {plan['reason']}"
    rows = [[key.replace("_", " "), str(value)] for key, value in facts.items() if value is not None]
    return ["<h2>Machine and choices</h2>", table(["what", "value"], rows)]


def _configuration(record: RunRecord) -> list[str]:
    sections = record.config.model_dump(mode="json", exclude_none=True)
    parts = ["<h2>Configuration</h2>"]
    for section, values in sections.items():
        rows = [[key, str(value)] for key, value in values.items()]
        if rows:
            parts.append(f"<details><summary>{section}</summary>{table(['setting', 'value'], rows)}</details>")
    return parts

"""Several runs on one page: their curves in one picture, their results and differences in two tables."""

from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any

from smallgpt.application.diagnosis import diagnose
from smallgpt.application.findings import RunRecord
from smallgpt.interfaces.report import plots
from smallgpt.interfaces.report.markup import bulk, duration, table
from smallgpt.interfaces.report.page import bits_per_byte, run_seconds, typical_speed, write_page
from smallgpt.interfaces.report.record import read_record, run_of


def write_comparison(runs: list[Path], out: Path) -> Path:
    """Write one self-contained page about several runs to `out`. Raises CheckpointError when one cannot be read."""
    folders = [run_of(run).absolute() for run in runs]
    records = dict(zip(_names(folders), map(read_record, folders), strict=True))
    write_page(out, "Runs compared", _body(records))
    return out


def _names(folders: list[Path]) -> list[str]:
    """Folder names, whole paths where two are alike, numbered where a run is given twice."""
    alike = Counter(folder.name for folder in folders)
    names = [folder.name if alike[folder.name] == 1 else str(folder) for folder in folders]
    return [name if names.count(name) == 1 else f"{name} ({at})" for at, name in enumerate(names, start=1)]


def _body(records: dict[str, RunRecord]) -> str:
    sections = ["<h1>Runs compared</h1>", _results(records)]
    vocabularies = {record.config.model.vocab_size for record in records.values()}
    if len(vocabularies) > 1:
        sections.append("<p>Vocabularies differ: compare bits per byte, not nats a token.</p>")
    sections += ["<h2>Curves</h2>", plots.compared_losses(records), plots.compared_validations(records)]
    differences = _differences(records)
    sections.append("<h2>What differs</h2>" + (differences or "<p>The configurations are the same.</p>"))
    return "\n".join(sections)


def _results(records: dict[str, RunRecord]) -> str:
    header = ["run", "nats a token", "bits per byte", "steps", "tokens", "time", "tokens/s", "parameters", "findings"]
    return table(header, [_result(name, record) for name, record in records.items()])


def _result(name: str, record: RunRecord) -> list[str]:
    loss = f"{record.last_score:.3f}" if isfinite(record.last_score) else "–"
    return [
        name,
        loss,
        bits_per_byte(record),
        f"{record.steps_done:,}" + ("" if record.finished else f" of {record.steps_planned:,}"),
        bulk(record.train[-1].get("tokens")) if record.train else "–",
        duration(run_seconds(record)),
        bulk(typical_speed(record)),
        bulk(record.start.get("parameters")),
        "; ".join(finding.title for finding in diagnose(record.config, record.events, record.manifest)) or "none",
    ]


def _differences(records: dict[str, RunRecord]) -> str:
    settings = [_settings(record) for record in records.values()]
    names = sorted({name for setting in settings for name in setting})
    rows = [[name, *(setting.get(name, "–") for setting in settings)] for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return table(["setting", *records], differing) if differing else ""


def _settings(record: RunRecord) -> dict[str, str]:
    sections: dict[str, dict[str, Any]] = record.config.model_dump(mode="json", exclude_none=True)
    return {f"{section}.{key}": str(value) for section, values in sections.items() for key, value in values.items()}

"""What is wrong with a run, in plain words: every check reads the record and answers with a finding or None."""

from typing import Any

from smallgpt.application.findings import Finding, RunRecord
from smallgpt.application.findings_in_data import DATA_CHECKS
from smallgpt.application.findings_in_training import TRAINING_CHECKS
from smallgpt.domain.config import RunConfig


def diagnose(config: RunConfig, events: list[dict[str, Any]], manifest: dict[str, Any] | None) -> list[Finding]:
    """The findings about a run, worst first; a healthy run has none.

    config is the run's config.toml, events the lines of its metrics.jsonl, manifest the dataset.json of its data folder
    (None when the data is not at hand: the checks that need it are left out).
    """
    record = RunRecord(config, events, manifest)
    findings = [finding for check in (*TRAINING_CHECKS, *DATA_CHECKS) if (finding := check(record))]
    return sorted(findings, key=lambda finding: ("problem", "warning", "note").index(finding.severity))

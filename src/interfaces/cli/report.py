"""`smallgpt report`: a run as one HTML page, or several runs side by side on one."""

from pathlib import Path

from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces.cli.flags import PlaceOf


def report(*runs: PlaceOf, out: Path | None = None) -> None:
    """Write a run's report as one HTML page that needs nothing else, or compare several runs on one page.

    Curves with the n-gram lines, samples through the run, settings, the machine, and what the doctor says.
    A finished run already has its report.html; this writes it anew, for unfinished runs too.

    Try:
      smallgpt report runs/demo
      smallgpt report runs/demo --out demo.html
      smallgpt report runs/first runs/second --out comparison.html

    Args:
        runs: Run folders, or URLs of runs.
        out: The file to write. Default: report.html in the run, or comparison.html here for several.
    """
    from smallgpt.interfaces.places import record_at_hand
    from smallgpt.interfaces.report.comparison import write_comparison
    from smallgpt.interfaces.report.page import write_report

    if not runs:
        raise ConfigError("report needs a run\ntry smallgpt report runs/demo")
    folders = [record_at_hand(run) for run in runs]
    several = len(folders) > 1
    print(write_comparison(folders, out or Path("comparison.html")) if several else write_report(folders[0], out))

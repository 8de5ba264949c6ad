"""`smallgpt report`: a run as one HTML page, or several runs side by side on one."""

from pathlib import Path

from smallgpt.domain.errors import ConfigError


def report(*runs: Path, out: Path | None = None) -> None:
    """Write a run's report as one HTML page that needs nothing else, or compare several runs on one page.

    Curves with the n-gram lines, samples through the run, settings, the machine, and what the doctor says.
    A finished run already has its report.html; this writes it anew, for unfinished runs too.

    Try:
      smallgpt report runs/demo
      smallgpt report runs/demo --out demo.html
      smallgpt report runs/first runs/second --out comparison.html

    Args:
        runs: Run folders.
        out: The file to write. Default: report.html in the run, or comparison.html here for several.
    """
    from smallgpt.interfaces.report.comparison import write_comparison
    from smallgpt.interfaces.report.page import write_report

    if not runs:
        raise ConfigError("report needs a run\ntry smallgpt report runs/demo")
    several = len(runs) > 1
    print(write_comparison(list(runs), out or Path("comparison.html")) if several else write_report(runs[0], out))

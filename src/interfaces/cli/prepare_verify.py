"""`smallgpt prepare verify DIR`: is a data folder still what was made?"""

import sys
from json import dumps
from pathlib import Path

from smallgpt.interfaces.cli.flags import Json


def verify(folder: Path, /, *, json: Json = False) -> int:
    """Read a data folder again and compare it with its dataset.json.

    Sizes, SHA-256, ids, document starts and the tokenizer: everything that training takes on trust.
    Leaves with 0 when all is well, and 3 when a file differs.

    Try:
      smallgpt prepare verify data/demo
      smallgpt prepare verify data/demo --json

    Args:
        folder: Data folder made by `smallgpt prepare`.
        json: Print a JSON list instead: file, and its problem or null.
    """
    from dataclasses import asdict

    from rich.console import Console

    from smallgpt.domain.errors import DataError
    from smallgpt.infrastructure.verifying import verify as verdicts_on
    from smallgpt.interfaces.cli.progress import shown

    with shown(Console(stderr=True)) as progress:
        verdicts = list(verdicts_on(folder, progress))
    if json:
        print(dumps([asdict(verdict) for verdict in verdicts], indent=2))
    else:
        for verdict in verdicts:
            print(f"{'OK' if verdict.problem is None else 'differs':8} {folder / verdict.file}")
            if verdict.problem is not None:
                print(f"         {verdict.problem}")
    sound = all(verdict.problem is None for verdict in verdicts)
    if sound:
        print(f"{folder}: every file is what dataset.json says", file=sys.stderr)
    return 0 if sound else DataError.exit_code

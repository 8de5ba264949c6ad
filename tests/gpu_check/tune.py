"""Write tile tables: PYTHONPATH=typings python3 -m tests.gpu_check.tune attention --architecture sm_90.

On a GPU of that architecture by measuring; elsewhere by compiling alone.
"""

import argparse
from importlib.resources import files
from json import dumps, loads
from pathlib import Path

from smallgpt.kernels.compiling import check_compiler
from smallgpt.kernels.launching import ARCHITECTURES
from smallgpt.kernels.tuning import tune


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.gpu_check.tune", description="Write an operation's tile table."
    )
    parser.add_argument("operation", choices=("attention", "linear_cross_entropy"))
    parser.add_argument("--architecture", choices=ARCHITECTURES, nargs="+", default=ARCHITECTURES)
    arguments = parser.parse_args()
    check_compiler()
    path = Path(str(files("smallgpt.kernels"))) / arguments.operation / "tiles.json"
    entries = [e for e in loads(path.read_text(encoding="utf-8")) if e["architecture"] not in arguments.architecture]
    for name in arguments.architecture:
        for entry in tune(arguments.operation, name):
            entries.append(entry)
            print(dumps(entry), flush=True)
    entries.sort(key=lambda e: (e["kernel"], e["architecture"], e["bits"], e["size"]))
    path.write_text("[\n" + ",\n".join(map(dumps, entries)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()

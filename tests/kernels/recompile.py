"""A process apart from the interpreter's: `python recompile.py KEY...` compiles launches again and prints their rows as JSON.

Without keys, prints the keys that the host code asks for now, with the variants' names.
"""

import sys
from dataclasses import asdict
from json import dumps

from smallgpt.kernels.compile_pool import compile_all
from smallgpt.kernels.compiling import check_compiler, jobs, version
from smallgpt.kernels.launching import ARCHITECTURES
from smallgpt.kernels.select import OPERATIONS

if __name__ == "__main__":
    check_compiler()
    asked = sys.argv[1:]
    found = [job for name in OPERATIONS for target in ARCHITECTURES for job in jobs(name, target)]
    if asked:
        rows = [asdict(row) for row in compile_all([job for job in found if job.row.key in asked])]
    else:
        rows = [asdict(job.row) for job in found]
    print(dumps({"triton": version(), "rows": rows}))

"""`smallgpt kernels`: the implementations of the hot operations, checked on this machine, and compiled for others."""

import sys
from dataclasses import asdict
from json import dumps
from typing import Annotated, Literal

from cyclopts import App, Parameter

from smallgpt.domain.errors import ConfigError, HardwareError
from smallgpt.interfaces.cli.errors import did_you_mean
from smallgpt.interfaces.cli.flags import Json, Switch, Whole

ABOUT = """Show which implementation computes each hot operation, and what the compiler makes of the Triton kernels.

Try:
  smallgpt kernels list
  smallgpt kernels check
  smallgpt kernels compile --target sm_90
"""

app = App(name="kernels", help=ABOUT)


@app.command(name="list")
def list_(
    *,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    json: Json = False,
) -> None:
    """Launch every implementation of every operation, compare it with the formula, and show what `auto` takes.

    Try:
      smallgpt kernels list
      smallgpt kernels list --device cuda --precision bf16 --json

    Args:
        device: auto, cpu, cuda or cuda:N.
        precision: auto, fp32, bf16 or fp16.
        json: Print a JSON list instead: operation, backend, available, reason, chosen.
    """
    from smallgpt.infrastructure.devices import DTYPES, choose_device, choose_precision
    from smallgpt.kernels.expectations import Shape
    from smallgpt.kernels.select import candidates

    place = choose_device(device)
    arithmetic = choose_precision(place, precision)
    shape = Shape()
    rows = list(candidates(place, DTYPES[arithmetic.value], shape))
    if json:
        print(dumps([asdict(row) for row in rows], indent=2))
        return
    size = f"heads of {shape.head_size}, a context of {shape.block_size:,} and a width of {shape.n_embd}"
    print(f"{place}, {arithmetic.value} ({arithmetic.reason}); for {size}")
    width = max(len(row.operation) for row in rows)
    for row in rows:
        mark = "*" if row.chosen else " "
        available = "ok" if row.available else "no"
        print(f"{mark} {row.operation:{width}}  {row.backend:14}  {available}  {row.reason}")
    print("* is what --kernels.backend auto takes")


@app.command
def check(
    *,
    backend: str = "all",
    device: str = "auto",
    json: Json = False,
) -> int:
    """Launch every implementation on this device in every dtype, forwards and backwards, and compare with float64.

    Exit code 6 if one fails or gives wrong results, or if the --backend asked for does not run here at all.

    Try:
      smallgpt kernels check
      smallgpt kernels check --backend triton --device cuda --json

    Args:
        backend: torch, reference or triton alone; all by default.
        device: auto, cpu, cuda or cuda:N.
        json: Print a JSON list instead: operation, backend, dtype, passed, words, error, available.
    """
    from rich.console import Console

    from smallgpt.infrastructure.devices import DTYPES, choose_device
    from smallgpt.interfaces.cli.check_table import show
    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.kernels import select

    backends = _known("backend", () if backend == "all" else (backend,), tuple(select.BACKENDS))
    place = choose_device(device)
    wanted = [
        (operation, name, dtype)
        for operation in select.OPERATIONS
        for name in select.backends_of(operation)
        if any(name == of or name.startswith(f"{of}-") for of in backends)  # "triton" means its designs too
        for dtype in DTYPES
    ]
    rows = []
    with shown(Console(stderr=True)) as tell:
        for done, (operation, name, dtype) in enumerate(wanted, 1):
            result = select.check(operation, name, place, DTYPES[dtype])
            rows.append({"operation": operation, "backend": name, "dtype": dtype, **asdict(result)})
            tell(done, len(wanted), "checking")
    wrong = any(row["available"] and not row["passed"] for row in rows)
    nowhere = not any(row["available"] for row in rows)
    if json:
        print(dumps(rows, indent=2))
    else:
        show(rows, Console())
    return HardwareError.exit_code if wrong or nowhere else 0


Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", show_default=False)]


@app.command(name="compile")
def compile_(
    *,
    target: Names = (),
    operation: Names = (),
    fresh: Switch = False,
    write: Switch = False,
    processes: Whole | None = None,
    json: Json = False,
) -> int:
    """Compile the Triton kernels for GPUs that need not be here, and check what came out.

    Every launch that the tile tables lead to must compile, use the GPU's tensor cores,
    spill no register and fit the shared memory; exit code 6 if one does not.
    Only what changed since the package's own report is compiled.

    Try:
      smallgpt kernels compile
      smallgpt kernels compile --target sm_90 sm_100 --operation attention
      smallgpt kernels compile --fresh --json

    Args:
        target: sm_75, sm_80, sm_86, sm_89, sm_90, sm_100, sm_120, gfx942; all by default.
        operation: attention, layer_norm, linear_cross_entropy; all by default.
        fresh: Compile everything, whatever the report says.
        write: Write what was found into the package's report; for a change to the kernels.
        processes: How many compile at once; one a core by default.
        json: Print a JSON list instead: kernel, variant, target, instruction, registers, spill_bytes, shared_bytes,
            shared_limit and more.
    """
    from rich.console import Console

    from smallgpt.interfaces.cli.compile_table import show
    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.kernels import compile_report, compiling
    from smallgpt.kernels.compile_pool import compile_all
    from smallgpt.kernels.launching import ARCHITECTURES
    from smallgpt.kernels.select import OPERATIONS

    if processes is not None and processes < 1:
        raise ConfigError(f"--processes {processes} would compile nothing; give 1 or more")
    operations, targets = _known("operation", operation, OPERATIONS), _known("target", target, ARCHITECTURES)
    compiling.check_compiler()
    report = compile_report.read()
    jobs = [job for name in operations for place in targets for job in compiling.jobs(name, place)]
    rows, changed = compiling.up_to_date(jobs, compile_report.Report("", {}) if fresh else report)
    with shown(Console(stderr=True)) as tell:
        for done, row in enumerate(compile_all(changed, processes), 1):
            rows.append(row)
            tell(done, len(changed), "compiling")
    if write:
        others = [row for row in report.rows.values() if row.operation not in operations or row.target not in targets]
        compile_report.write(compiling.version(), [*rows, *(others if report.triton == compiling.version() else ())])
    broken = sum(bool(compile_report.faults(row)) for row in rows)
    if json:
        print(dumps([row.as_dict() for row in rows], indent=2))
    else:
        show(rows, Console(width=None if sys.stdout.isatty() else 120))
        print(f"{len(rows):,} launches, {len(changed):,} of them compiled now; {broken:,} break a rule")
    return HardwareError.exit_code if broken else 0


def _known(what: str, asked: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """What was asked for, or everything. Raises ConfigError for a name that does not exist."""
    for name in asked:
        if name not in known:
            raise ConfigError(f"unknown {what} {name!r}{did_you_mean(name, known)}\n{what}s: {', '.join(known)}")
    return tuple(dict.fromkeys(asked)) or known

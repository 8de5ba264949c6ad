"""`smallgpt kernels`: the implementations of the hot operations, checked on this machine."""

from dataclasses import asdict
from json import dumps
from typing import Literal

from cyclopts import App

from smallgpt.interfaces.cli.flags import Json

ABOUT = "Show which implementation computes each hot operation.\n\nTry:\n  smallgpt kernels list"

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
    from smallgpt.kernels.select import candidates

    place = choose_device(device)
    arithmetic = choose_precision(place, precision)
    rows = list(candidates(place, DTYPES[arithmetic.value]))
    if json:
        print(dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{place}, {arithmetic.value} ({arithmetic.reason})")
    width = max(len(row.operation) for row in rows)
    for row in rows:
        mark = "*" if row.chosen else " "
        available = "ok" if row.available else "no"
        print(f"{mark} {row.operation:{width}}  {row.backend:9}  {available}  {row.reason}")
    print("* is what --kernels.backend auto takes")

"""What the compiler made of each launch, the rules it must keep, and the committed report of all of them.

`compile_report.json` lies beside this file, one launch a line. A launch is recognised by its key, the hash of the kernel's
source and of everything that Triton specialises it on, so only what changed is ever compiled again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from json import dumps, loads
from pathlib import Path
from typing import Any

from smallgpt.kernels.gpus import GPUS, TENSOR_MEMORY_COLUMNS, occupancy

PATH = Path(__file__).with_name("compile_report.json")


@dataclass(frozen=True)
class Row:
    """One launch, compiled for one target."""

    operation: str
    target: str
    """"sm_90", "gfx942", ..."""
    kernel: str
    """With its file, "one_tile.forward", unless that is kernels.py."""
    variant: str
    """The first of the operation's variants that asks for it."""
    key: str
    tile: str
    """The constants of the launch: "M=128 N=64"."""
    num_warps: int
    num_stages: int
    dots: str = ""
    """Operand types of its matrix products: "bf16", "f32" (exact), "tf32", "bf16+f32", or "" for none."""
    instruction: str = "none"
    """What computes them: "mma.sync", "wgmma", "tcgen05.mma", "v_mfma_bf16", "fma", joined by "+" if several; or "none"."""
    registers: int = 0
    """Of a thread."""
    spill_bytes: int = 0
    """Of a thread: registers' contents that live in memory."""
    shared_bytes: int = 0
    """Of a program."""
    tensor_memory: int = 0
    """Columns of a program, on sm_100."""
    measured: str = ""
    """The JSON that shows this launch faster on a GPU although it spills."""
    error: str = ""
    """Why it did not compile."""

    @property
    def shared_limit(self) -> int:
        return GPUS[self.target].shared_limit

    @property
    def occupancy(self) -> float:
        """Resident warps over those that the hardware can hold; information, not a rule."""
        if self.error:
            return 0.0
        return occupancy(self.target, self.registers, self.shared_bytes, self.num_warps, self.tensor_memory)

    def as_dict(self) -> dict[str, Any]:
        """For `smallgpt kernels compile --json`."""
        derived = {"shared_limit": self.shared_limit, "occupancy": round(self.occupancy, 3), "faults": faults(self)}
        return asdict(self) | derived


COLUMNS = [field.name for field in fields(Row)][2:]


def faults(row: Row) -> list[str]:
    """The rules that a launch breaks, in words; empty for a good one.

    Every dot in 16 bits or tf32 runs on tensor cores (not on sm_75, where Triton has none), and fp32 is not rounded on
    its way; nothing spills; a program fits its GPU. Of sm_75 only kernels without a dot must fit: the others do not run there.
    """
    if row.error:
        return [f"does not compile: {row.error}"]
    found = _instruction_faults(row)
    if row.target == "sm_75" and row.dots:
        return found
    if row.spill_bytes and not row.measured:
        found.append(f"spills {row.spill_bytes} bytes a thread")
    if row.shared_bytes > row.shared_limit:
        found.append(f"takes {row.shared_bytes:,} bytes of shared memory of {row.shared_limit:,}")
    elif row.tensor_memory > TENSOR_MEMORY_COLUMNS:
        found.append(f"takes {row.tensor_memory} columns of tensor memory of {TENSOR_MEMORY_COLUMNS}")
    elif row.occupancy == 0:
        found.append(f"cannot launch: {row.num_warps} warps of {row.registers} registers do not fit")
    return found


def _instruction_faults(row: Row) -> list[str]:
    dots, used = _parts(row.dots), _parts(row.instruction)
    cores = {name for name in used for known in GPUS[row.target].instructions if name.startswith(known)}
    if dots == {"f32"}:
        rounded = cores - {"v_mfma_f32"}  # AMD's matrix cores also multiply fp32 exactly
        return [f"rounds fp32 operands: {'+'.join(sorted(rounded))}"] if rounded else []
    if not dots or not GPUS[row.target].instructions:
        return []
    if not cores:
        return [f"multiplies {row.dots} without tensor cores: {row.instruction}"]
    if "fma" in used and "f32" not in dots:
        return [f"multiplies some of {row.dots} without tensor cores: {row.instruction}"]
    return []


def _parts(joined: str) -> set[str]:
    return set(joined.split("+")) - {""}


def worse(row: Row, before: Row) -> list[str]:
    """In what a launch is worse than the committed report says, in words."""
    found = [fault for fault in faults(row) if fault not in faults(before)]
    if row.instruction != before.instruction:
        found.append(f"{row.instruction}, was {before.instruction}")
    for name in ("spill_bytes", "shared_bytes", "tensor_memory"):
        now, then = getattr(row, name), getattr(before, name)
        if now > then:
            found.append(f"{name} {now}, was {then}")
    return found


@dataclass(frozen=True)
class Report:
    """The rows of one Triton version, by key."""

    triton: str
    rows: Mapping[str, Row]


def read(path: Path = PATH) -> Report:
    """The committed report; an empty one if there is none, or if it was written with other columns."""
    content = loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if content.get("columns") != COLUMNS:
        return Report("", {})
    rows = [Row(*place.split(), *values) for place, of_place in content["rows"].items() for values in of_place]
    return Report(content["triton"], {row.key: row for row in rows})


def write(triton: str, rows: Iterable[Row], path: Path = PATH) -> None:
    """Write a report, the same text for the same rows in any order."""
    places: dict[str, list[str]] = {}
    for row in sorted(rows, key=astuple):
        places.setdefault(f"{row.operation} {row.target}", []).append(_line(row))
    body = ",\n".join(f"{dumps(place)}:[\n" + ",\n".join(lines) + "\n]" for place, lines in places.items())
    head = f'"triton":{dumps(triton)},\n"columns":{dumps(COLUMNS)}'
    path.write_text(f'{{{head},\n"rows":{{{body}}}}}\n', encoding="utf-8")


def _line(row: Row) -> str:
    """Without the operation and the target, which stand above, and without the fields at the end that have their defaults."""
    values = [getattr(row, name) for name in COLUMNS]
    while values[-1] in ("", 0):
        values.pop()
    return dumps(values, separators=(",", ":"))

"""`smallgpt doctor`: this machine, what a run would use on it and why, and what is wrong with a run."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any

from smallgpt.domain.places import without_secrets
from smallgpt.interfaces.cli.flags import Json, PlaceOf

NETWORK = "not needed, except to fetch a corpus from the hub or GPT-2's tokenizer for the first time"


def doctor(run: PlaceOf | None = None, /, *, json: Json = False) -> None:
    """Look at this machine, and at a run, for trouble.

    Shows the machine, the versions, and which device, precision, threads and kernels a run would use, with the reasons.
    Given a run, says in plain words what is wrong with it and which flag helps.

    Try:
      smallgpt doctor
      smallgpt doctor runs/demo
      smallgpt doctor runs/demo --json

    Args:
        run: Run folder, one of its checkpoints, or the URL of a run.
        json: Print a JSON object instead: machine, versions, choices, network, folders, run.
    """
    patient = None if run is None else _examined(run)
    report = {**_machine(), "run": patient}
    print(dumps(report, indent=2) if json else "\n".join(_words(report)))


def _examined(run: Path | str) -> dict[str, Any]:
    """A run's state and findings. Raises CheckpointError when it cannot be read."""
    from smallgpt.application.diagnosis import diagnose
    from smallgpt.interfaces.places import record_at_hand
    from smallgpt.interfaces.report.page import verdict
    from smallgpt.interfaces.report.record import read_record

    record = read_record(record_at_hand(run))
    findings = diagnose(record.config, record.events, record.manifest)
    return {
        "path": without_secrets(str(run)),
        "verdict": verdict(record),
        "data_at_hand": record.manifest is not None,
        "findings": [asdict(finding) for finding in findings],
    }


def _machine() -> dict[str, Any]:
    from smallgpt import __version__
    from smallgpt.infrastructure import hardware

    folders = {"current folder": Path.cwd(), **hardware.caches()}
    return {
        "machine": asdict(hardware.hardware()),
        "versions": {"smallgpt": __version__, **hardware.versions()},
        "choices": _choices(),
        "network": NETWORK,
        "folders": {
            name: {"path": str(path), "writable": hardware.is_writable(path)} for name, path in folders.items()
        },
    }


def _choices() -> dict[str, str]:
    """What a run with every choice left open would use, each with its reason."""
    from smallgpt.domain.config import RunConfig
    from smallgpt.domain.errors import HardwareError
    from smallgpt.interfaces.machine import choose_machine

    try:
        machine = choose_machine(RunConfig())
    except HardwareError as error:
        return {"problem": str(error)}
    found = "the first GPU that torch sees" if machine.device.type == "cuda" else "torch sees no CUDA device"
    return {"device": f"{machine.device}: {found}", **machine.reasons()}


def _words(report: dict[str, Any]) -> list[str]:
    machine = report["machine"]
    lines = ["machine", *_rows(_machine_rows(machine)), "versions"]
    lines += [*_rows(report["versions"]), "a run here would use"]
    lines += [*_rows({name.replace("_", " "): why for name, why in report["choices"].items()}), "network"]
    lines += [f"  {report['network']}", "folders"]
    lines += _rows(
        {
            name: f"{folder['path']} ({'writable' if folder['writable'] else f'not writable: {_moving(name)}'})"
            for name, folder in report["folders"].items()
        }
    )
    return lines + (_run_words(report["run"]) if report["run"] else [])


def _machine_rows(machine: dict[str, Any]) -> dict[str, str]:
    cores = f"{machine['cores']} cores, " if machine["cores"] else ""
    gpus = [f"{gpu['name']}, capability {gpu['capability']}, {_size(gpu['memory_bytes'])}" for gpu in machine["gpus"]]
    return {
        "processor": f"{machine['processor']}, {cores}{machine['usable_threads']} threads for this process",
        "memory": f"{_size(machine['memory_bytes'])}, {_size(machine['available_memory_bytes'])} available",
        "disk": f"{_size(machine['free_disk_bytes'])} free here",
        "gpu": "; ".join(gpus) or "none that torch can use",
    }


def _run_words(run: dict[str, Any]) -> list[str]:
    lines = [f"run {run['path']}", f"  {run['verdict']}"]
    if not run["data_at_hand"]:
        lines.append("  Its data folder is not at hand: documents, end-of-text and splits were not looked at.")
    if not run["findings"]:
        lines.append("  Nothing is wrong with this run.")
    for finding in run["findings"]:
        lines += [
            f"  {finding['severity']}: {finding['title']}",
            f"    {finding['evidence']}",
            f"    {finding['remedy']}",
        ]
    return lines


def _rows(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [f"  {name:{width}}  {words}" for name, words in rows.items()]


def _moving(name: str) -> str:
    return "work in another one" if name == "current folder" else f"set {name} to another one"


def _size(amount: int | None) -> str:
    return "unknown" if amount is None else f"{amount / 2**30:.1f} GiB"

"""The notebook: committed as it ran, and every cell of it runs in a real kernel on a small model trained here."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from smallgpt.interfaces.cli import main

NOTEBOOK = Path(__file__).parents[2] / "docs" / "library.ipynb"
SMALL = {
    "training.max-steps": 20,
    "training.threads": 1,
    "training.batch-size": 4,
    "model.n-layer": 2,
    "model.n-head": 2,
    "model.n-embd": 32,
    "evaluation.max-tokens": 2000,
    "evaluation.sample-tokens": 8,
}


def cells() -> list[Any]:
    """Those with code."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_committed_as_it_ran_from_top_to_bottom() -> None:
    assert [cell.execution_count for cell in cells()] == list(range(1, len(cells()) + 1))
    outputs = [output for cell in cells() for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}, "no warnings"
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 150_000
    assert not re.search(r"/(home|root|tmp|work)/", text), "it shows no folder of the machine that ran it"


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"--{name}={value}" for name, value in SMALL.items()]
    with pytest.raises(SystemExit) as left:
        main(["train", "demo", "--out", "runs/demo", *words])
    assert left.value.code == 0
    monkeypatch.setenv("SMALLGPT_RUN", "runs/demo")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert not [output.text for output in shown if output.get("name") == "stderr"]

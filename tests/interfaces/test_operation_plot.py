"""The picture of timed operations: what is drawn, and rows that have little to draw."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from smallgpt.application.benchmarking import Ceilings
from smallgpt.interfaces.operation_plot import plot

CEILINGS = Ceilings(flops=2e12, bytes=1e11)


def row(system: str, size: int, memory: int | None, direction: str = "both", batch: int = 2) -> dict[str, Any]:
    speed = {"rate": 0.5, "rate_unit": "TFLOP/s", "ceiling_fraction": 0.25, "arithmetic_intensity": size / 4.0}
    shape = {"seq_len": size, "batch_size": batch}
    return {"system": system, "direction": direction, "extra_memory_bytes": memory, **shape, **speed}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Plot rows; the figure that was written."""
    figures: list[Any] = []
    save = Figure.savefig

    def keep(figure: Any, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(rows: list[dict[str, Any]]) -> Any:
        plot(rows, ("seq_len", "batch_size"), CEILINGS, "title", tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        return figures[-1]

    return draw


def labels(panel: Any) -> set[str]:
    return {line.get_label() for line in panel.get_lines() if not line.get_label().startswith("_")}


def test_speed_memory_and_roofline_have_units_and_a_line_a_system(drawn: Any) -> None:
    ways = ("forward", "both")
    figure = drawn([row(s, size, 2**20, way) for way in ways for size in (64, 128) for s in ("ours", "flash")])
    forward, both, memory, roofline = figure.axes
    assert (forward.get_title(), both.get_title(), roofline.get_title()) == (
        "speed, forward",
        "speed, both",
        "roofline, both",
    )
    assert labels(forward) == {"ours", "flash", "measured ceiling"}
    assert labels(memory) == {"ours", "flash"}
    assert (forward.get_xlabel(), forward.get_ylabel()) == ("seq len", "TFLOP/s")
    assert (memory.get_xlabel(), memory.get_ylabel()) == ("seq len", "MiB")
    assert (roofline.get_xlabel(), roofline.get_ylabel()) == ("arithmetic intensity, FLOP / byte", "TFLOP/s")
    assert list(memory.get_lines()[0].get_ydata()) == [1.0, 1.0]


def test_achieved_flops_lie_under_the_two_ceilings(drawn: Any) -> None:
    *_, roofline = drawn([row("ours", 64, 5), row("ours", 128, 5)]).axes
    points, roof = roofline.get_lines()
    assert list(points.get_xdata()) == [16.0, 32.0]
    assert list(points.get_ydata()) == [0.5, 0.5]
    assert list(roof.get_xdata())[1] == 20.0  # FLOPs a byte where the ceilings meet
    assert list(roof.get_ydata())[1:] == [2.0, 2.0]


def test_every_second_size_that_varies_is_a_line_of_its_own(drawn: Any) -> None:
    figure = drawn([row("ours", size, 5, batch=batch) for size in (64, 128) for batch in (2, 4)])
    assert labels(figure.axes[0]) == {"ours, batch size 2", "ours, batch size 4", "measured ceiling"}


def test_nothing_extra_and_nothing_known_can_be_drawn(drawn: Any) -> None:
    memory = drawn([row("ours", 64, 0), row("flex", 64, None), row("ours", 128, 2**20)]).axes[1]
    assert labels(memory) == {"ours"}
    assert list(memory.get_lines()[0].get_ydata()) == [0.0, 1.0]


def test_one_row_is_enough(drawn: Any) -> None:
    assert len(drawn([row("ours", 64, None)]).axes) == 3


def test_a_form_on_parts_looks_like_the_form_that_it_is_of(drawn: Any) -> None:
    panel = drawn([row(name, 64, 5) for name in ("ours", "flash", "flash-apart")]).axes[0]
    whole, parts = panel.get_lines()[1:3]
    assert whole.get_color() == parts.get_color() != panel.get_lines()[0].get_color()
    assert (whole.get_linestyle(), parts.get_linestyle()) == ("-", "--")

"""The comparison of `make bench` with its baseline, on made-up times."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import ratios
from tests.benchmarks.ratios import Ratio, better_of, failed, judge, pairs, suspects, table


def timed(group: str, implementation: str, median: float, iqr: float = 0.0, rounds: int = 25) -> dict[str, Any]:
    return {
        "group": group,
        "fullname": f"test[{group}-{implementation}]",
        "extra_info": {"implementation": implementation},
        "stats": {"median": median, "iqr": iqr, "rounds": rounds},
    }


RUN = [timed("a", "torch", 2.0), timed("a", "other", 6.0), timed("a", "slow", 20.0), timed("b", "other", 1.0)]
RUN += [timed("b", "torch", 4.0)]


def test_a_ratio_is_theirs_over_ours_within_a_group() -> None:
    assert {pair: own.ratio for pair, own in pairs(RUN).items()} == {"a: other": 3.0, "a: slow": 10.0, "b: other": 0.25}


def test_the_error_grows_with_the_spread_of_either_and_shrinks_with_rounds() -> None:
    def error(ours: float, theirs: float, rounds: int) -> float:
        run = [timed("a", "torch", 2.0, ours, rounds), timed("a", "other", 6.0, theirs, rounds)]
        return pairs(run)["a: other"].error

    assert error(0.0, 0.0, 25) == 0
    assert error(0.2, 0.0, 25) == pytest.approx(0.9288 * 0.1 / 5, rel=1e-3)
    assert error(0.2, 0.6, 25) == pytest.approx(2**0.5 * error(0.2, 0.0, 25))
    assert error(0.2, 0.0, 100) == pytest.approx(error(0.2, 0.0, 25) / 2)


@pytest.mark.parametrize(
    ("ratio", "error", "word"),
    [
        (3.0, 0.0, "ok"),
        (9.0, 0.0, "ok"),
        (2.62, 0.0, "ok"),  # 3 ÷ 1.15 = 2.609
        (2.6, 0.0, "worse"),
        (2.6, 0.01, "ok"),  # 3 ÷ 1.18 = 2.542
        (2.5, 0.01, "worse"),
        (2.0, 0.2, "noisy"),
        (1.7, 0.2, "worse"),  # 3 ÷ 1.75 = 1.714
    ],
)
def test_a_ratio_may_fall_by_the_tolerance_and_the_noise(ratio: float, error: float, word: str) -> None:
    (verdict,) = judge({"a: other": Ratio(ratio, error)}, {"a: other": Ratio(3.0, 0.0)})
    assert verdict.word == word
    assert failed([verdict]) is (word == "worse")


def test_the_baselines_own_noise_counts_too() -> None:
    (verdict,) = judge({"p": Ratio(2.6, 0.0)}, {"p": Ratio(3.0, 0.01)})
    assert verdict.word == "ok"


def test_what_is_new_is_told_and_what_is_gone_fails() -> None:
    verdicts = judge({"new": Ratio(1.0, 0.0)}, {"gone": Ratio(1.0, 0.0)})
    assert [(each.pair, each.word) for each in verdicts] == [("gone", "not timed"), ("new", "new")]
    assert failed(verdicts)
    assert not failed(verdicts[1:])


def test_all_tests_of_a_group_with_a_worse_pair_are_timed_again() -> None:
    verdicts = judge(
        pairs(RUN), {"a: slow": Ratio(20.0, 0.0), "a: other": Ratio(3.0, 0.0), "b: other": Ratio(0.25, 0.0)}
    )
    assert suspects(verdicts, RUN) == ["test[a-torch]", "test[a-other]", "test[a-slow]"]


def test_the_better_of_two_timings_counts() -> None:
    first = {"a": Ratio(1.0, 0.1), "b": Ratio(2.0, 0.0), "c": Ratio(3.0, 0.0)}
    assert better_of(first, {"a": Ratio(1.5, 0.0), "b": Ratio(1.0, 0.0)}) == first | {"a": Ratio(1.5, 0.0)}


def test_the_table_has_a_line_a_pair() -> None:
    lines = table(
        judge({"a: other": Ratio(2.0, 0.0)}, {"a: other": Ratio(3.0, 0.0), "b": Ratio(1.0, 0.0)})
    ).splitlines()
    assert lines[1].split() == ["worse", "2.00x", "3.00x", "2.61x", "a:", "other"]
    assert lines[2].split() == ["not", "timed", "1.00x", "b"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[dict[str, Any]]]:
    """Timings to come, in turn; a baseline in a folder of its own."""
    runs: list[list[dict[str, Any]]] = []
    monkeypatch.setattr(ratios, "_time", lambda tests: runs.pop(0))
    monkeypatch.setattr(ratios, "BASELINE", tmp_path / "baseline.json")
    origin = {"command": "c", "machine": "this one", "versions": "v", "commit": "abc"}
    monkeypatch.setattr(ratios, "provenance", lambda: origin)
    return runs


SLOWER = [timed("a", "torch", 3.0), timed("a", "other", 6.0), timed("a", "slow", 20.0)]


def test_the_run_that_was_written_passes(bench: list[list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    bench += [RUN, RUN]
    assert ratios.main(["--write"]) == 0
    written = json.loads(ratios.BASELINE.read_text())
    assert written["machine"] == "this one"
    assert written["ratios"]["a: other"] == {"ratio": 3.0, "error": 0.0}
    assert ratios.main([]) == 0
    assert capsys.readouterr().out.count("\nok ") == 3


def test_slower_twice_fails_and_slower_once_does_not(bench: list[list[dict[str, Any]]]) -> None:
    bench += [RUN, [*SLOWER, *RUN[3:]], SLOWER, [*SLOWER, *RUN[3:]], RUN[:3]]
    assert ratios.main(["--write"]) == 0
    assert ratios.main([]) == 1
    assert ratios.main([]) == 0
    assert bench == []


def test_another_machine_is_shown_and_not_judged(
    bench: list[list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench += [RUN, [*SLOWER, *RUN[3:]]]
    ratios.main(["--write"])
    monkeypatch.setattr(ratios, "provenance", lambda: {"machine": "another"})
    assert ratios.main([]) == 0
    assert "not judged: the baseline is of this one, this is another; use --write" in capsys.readouterr().out


def test_the_committed_baseline_is_of_the_suite_as_it_is() -> None:
    committed = json.loads(Path(__file__).parents[2].joinpath(ratios.BASELINE).read_text(encoding="utf-8"))
    groups = {pair.rsplit(": ", 1)[0] for pair in committed["ratios"]}
    assert sum(group.startswith("attention ") for group in groups) == 6
    assert sum(group.startswith("linear cross-entropy ") for group in groups) == 2
    assert all(each["ratio"] > 0 and 0 <= each["error"] < 1 for each in committed["ratios"].values())

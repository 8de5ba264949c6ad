"""The report page: it stands alone, shows what is in the record, and survives odd runs."""

import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from math import cos, exp, nan, pi
from pathlib import Path
from typing import Any

import pytest

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces.cli.report import report
from smallgpt.interfaces.report.comparison import write_comparison
from smallgpt.interfaces.report.curves import smoothed, spread, thinned
from smallgpt.interfaces.report.markup import bulk, duration, escaped, worded
from smallgpt.interfaces.report.page import write_report

BASELINES = {"uniform": 7.62, "unigram": 5.41, "bigram": 3.81, "trigram": 3.46, "fitted_tokens": 1000}
MakeRun = Callable[..., Path]


def train_event(step: int, steps: int) -> dict[str, Any]:
    return {
        "event": "train",
        "step": step,
        "loss": 2.0 + 5.6 * exp(-8 * step / steps),
        "learning_rate": 1e-3 * (0.55 + 0.45 * cos(pi * step / steps)),
        "grad_norm": 0.6,
        "tokens": 4096 * step,
        "tokens_per_second": 34_000.0,
        "seconds": 0.12 * step,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run folder of so many steps; `validate` and `sample` say whether it looked at itself."""

    def make(
        name: str = "run", steps: int = 100, *, validate: bool = True, sample: str | None = "he & <she>", **config: Any
    ) -> Path:
        folder = RunFolder(tmp_path / name)
        folder.write_config(RunConfig.model_validate({"schedule": {"warmup": 0}} | config))
        events: list[dict[str, Any]] = [
            {
                "event": "start",
                "step": 0,
                "device": "cpu",
                "threads": 2,
                "precision": "bf16",
                "reasons": {"precision": "bf16: the processor has AMX", "linear_cross_entropy": "torch: launched"},
                "parameters": 5_200_000,
                "planned_steps": steps,
                "tokens_per_step": 4096,
                "baselines": BASELINES,
                "peak_flops": 2.1e11,
            }
        ]
        for step in range(1, steps + 1):
            events.append(train_event(step, steps))
            if step % max(1, steps // 20) == 0 and validate:
                events.append({"event": "validation", "step": step, **score(events[-1]["loss"] + 0.1)})
            if step % max(1, steps // 20) == 0 and sample is not None:
                text = f"Once upon a time {sample} at step {step}"
                events.append({"event": "sample", "step": step, "prompt": "Once upon a time", "text": text})
        events.append({"event": "end", "step": steps, "seconds": 0.12 * steps, "reason": "finished"})
        write_events(folder.path, events)
        return folder.path

    return make


def score(nats: float) -> dict[str, Any]:
    bits = nats / 2.7
    return {
        "nats_per_token": nats,
        "bits_per_byte": bits,
        "bits_per_byte_interval": [bits - 0.02, bits + 0.02],
        "perplexity": exp(nats),
        "tokens": 100_000,
    }


def write_events(run: Path, events: list[dict[str, Any]]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def change(run: Path, **values: Any) -> None:
    """Put values into every training event after the middle."""
    events = RunFolder(run).metrics()
    train = [event for event in events if event["event"] == "train"]
    for event in train[len(train) // 2 :]:
        event.update(values)
    write_events(run, events)


class Page(HTMLParser):
    """Checks that tags close in order, and collects text and what would be fetched."""

    VOID = frozenset({"meta", "br", "path", "use"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.links += [str(named[key]) for key in ("src", "href", "xlink:href", "action", "data") if key in named]
        self.ids += [str(named["id"])] if "id" in named else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone(make_run: MakeRun) -> None:
    page = Page(write_report(make_run()))
    assert page.source.count("<svg") == 5
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page.source)
    assert "<script" not in page.source
    inner = {link[1:] for link in page.links} | set(re.findall(r"url\(#([^)]+)\)", page.source))
    assert inner == set(page.ids)
    assert "#0a0a0" not in page.source  # every colour follows the scheme
    assert "prefers-color-scheme: dark" in page.source
    assert 'name="viewport"' in page.source


def test_the_page_shows_what_the_record_holds(make_run: MakeRun) -> None:
    run = make_run()
    target = write_report(run)
    page = Page(target)
    assert target == run / "report.html"
    for words in (
        "Finished after 100 steps. The validation loss is 2.102 nats a token, below the trigram line (3.46)",
        "0.778 ± 0.020",
        "unigram 5.41",
        "bf16: the processor has AMX",
        "210 GFLOP/s",
        "learning_rate",
        "Nothing is wrong with this run.",
        "at step 5",
        "at step 100",
    ):
        assert words in page.text
    assert page.source.count("class='sample'") == 12


def test_a_validation_before_the_first_step_is_not_the_trained_models(make_run: MakeRun) -> None:
    run = make_run(validate=False)
    events = RunFolder(run).metrics()
    guess = {"event": "validation", "step": 0, **score(8.1)}
    write_events(run, [events[0], guess, *events[1:-1], {**events[-1], "reason": "interrupted", "step": 50}])
    page = Page(write_report(run))
    assert "There was no validation pass" in page.text
    assert "8.100" not in page.text
    assert "not learning" not in page.text


def test_an_older_validation_is_shown_with_its_step(make_run: MakeRun) -> None:
    run = make_run()
    events = [event for event in RunFolder(run).metrics() if event["event"] != "validation" or event["step"] <= 90]
    write_events(run, events)
    assert "The validation loss was, at step 90, 2.104 nats a token" in Page(write_report(run)).text


def test_findings_are_on_the_page(make_run: MakeRun) -> None:
    page = Page(write_report(make_run(training={"label_smoothing": 0.1})))
    assert "note: The training loss includes label smoothing" in page.text
    assert "training (smoothed labels)" in page.text
    assert "<code>--training.label-smoothing</code>" in page.source


def test_text_of_a_model_cannot_become_markup(make_run: MakeRun) -> None:
    evil = "<script>alert(1)</script> $body \x00\x1b[2J \"'&amp;"
    page = Page(write_report(make_run(name="<i>&$title", sample=evil)))
    assert "<script" not in page.source
    assert "<i>" not in page.source
    assert "<script>alert(1)</script> $body ��[2J" in page.text
    assert "\x00" not in page.source


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("validate", [True, False])
def test_very_short_runs_have_a_page(make_run: MakeRun, steps: int, validate: bool) -> None:
    page = Page(write_report(make_run(steps=steps, validate=validate, sample=None)))
    assert page.source.count("<svg") == (5 if validate else 4)
    assert validate != ("There was no validation pass" in page.text)
    assert "The same prompt" not in page.text


def test_a_run_that_wrote_nothing_has_a_page(make_run: MakeRun) -> None:
    run = make_run()
    (run / "metrics.jsonl").unlink()
    assert "No step has been trained yet." in Page(write_report(run)).text
    write_events(run, [{"event": "start", "step": 0}])
    assert "The run did not finish" in Page(write_report(run)).text


def test_an_unfinished_run_and_a_torn_last_line(make_run: MakeRun) -> None:
    run = make_run()
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    torn = "\n".join([*lines[:60], "7", '{"no": "event"}', '{"event": "train", "st'])
    (run / "metrics.jsonl").write_text(torn, encoding="utf-8")
    assert re.search(r"Stopped after \d+ of 100 steps", Page(write_report(run)).text)


@pytest.mark.parametrize("value", [nan, float("inf"), None], ids=["nan", "inf", "null"])
def test_what_is_not_finite_is_marked_and_breaks_nothing(make_run: MakeRun, value: float | None) -> None:
    run = make_run()
    change(run, loss=value, grad_norm=value)
    page = Page(write_report(run))
    assert "not finite" in page.text
    assert "Losses or gradients were not finite" in page.text
    assert "nan" not in "".join(re.findall(r' d="([^"]*)"', page.source)).lower()


def test_a_loss_that_explodes_leaves_the_rest_readable(make_run: MakeRun) -> None:
    run = make_run()
    calm = Page(write_report(run))
    events = RunFolder(run).metrics()
    next(event for event in events if event["event"] == "train" and event["step"] == 90)["loss"] = 1e30
    write_events(run, events)
    wild = Page(write_report(run))
    assert "1e30" not in wild.text
    assert labels(wild)[:4] == labels(calm)[:4]


def labels(page: Page) -> list[str]:
    """Text of the first picture: ticks, then titles."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", page.source)


def test_a_hundred_thousand_steps_are_thinned_out(make_run: MakeRun) -> None:
    run = make_run(steps=100_000)
    before = time.perf_counter()
    size = write_report(run).stat().st_size
    assert time.perf_counter() - before < 30  # some seconds; the limit is for a busy machine
    assert size < 400_000


def test_the_same_record_gives_the_same_page(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    assert write_report(run).read_bytes() == write_report(run, tmp_path / "again.html").read_bytes()


def test_a_checkpoint_stands_for_its_run(make_run: MakeRun) -> None:
    run = make_run()
    checkpoint = run / "checkpoints" / "step-00000100"
    checkpoint.mkdir(parents=True)
    assert write_report(checkpoint).resolve() == (run / "report.html").resolve()


def test_what_is_no_run_is_refused(tmp_path: Path, make_run: MakeRun) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.toml"):
        write_report(tmp_path / "nowhere")
    run = make_run()
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        write_report(run)


def test_a_comparison_shows_results_and_what_differs(make_run: MakeRun, tmp_path: Path) -> None:
    first = make_run("first")
    second = make_run("second", steps=40, optimizer={"learning_rate": 0.004}, model={"vocab_size": 2048})
    page = Page(write_comparison([first, second], tmp_path / "out" / "both.html"))
    assert page.source.count("<svg") == 2
    assert all(link.startswith("#") for link in page.links)
    for words in ("first", "second", "2.102", "optimizer.learning_rate", "0.004", "compare bits per byte"):
        assert words in page.text
    assert "optimizer.beta1" not in page.text


def test_runs_of_one_name_and_equal_settings_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    same = make_run("a/run"), make_run("b/run", validate=False, sample=None)
    page = Page(write_comparison([*same, same[0]], tmp_path / "all.html"))
    assert "The configurations are the same." in page.text
    assert str(same[1]) in page.text
    assert f"{same[0]} (1)" in page.text
    assert f"{same[0]} (3)" in page.text


def test_many_runs_fit_one_comparison(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(f"run{i}", steps=10) for i in range(7)]
    assert "run6" in labels(Page(write_comparison(runs, tmp_path / "all.html")))


def test_the_command_writes_one_page_or_a_comparison(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = make_run("first"), make_run("second")
    report(runs[0])
    assert capsys.readouterr().out.strip() == str(runs[0] / "report.html")
    report(runs[0], out=Path("page.html"))
    assert "<h1>first</h1>" in Path("page.html").read_text(encoding="utf-8")
    report(*runs)
    assert "Runs compared" in Path(capsys.readouterr().out.split()[-1]).read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="needs a run"):
        report()


def test_smoothing_keeps_a_constant_and_does_not_lag() -> None:
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    line = [float(i) for i in range(1000)]
    assert smoothed(line)[500] == pytest.approx(500, abs=0.01)
    gap = smoothed([1.0, nan, 1.0])
    assert gap[0] == gap[2] == 1.0
    assert gap[1] != gap[1]


def test_thinning_keeps_ends_spikes_and_order() -> None:
    y = [0.0] * 10_000
    y[4321], y[777] = 9.0, -9.0
    x, thin = thinned([float(i) for i in range(10_000)], y, most=100)
    assert len(x) <= 102
    assert (x[0], x[-1]) == (0.0, 9999.0)
    assert x == sorted(x)
    assert {9.0, -9.0} <= set(thin)
    assert thinned([1.0], [2.0]) == ([1.0], [2.0])
    assert all(value != value for value in thinned([float(i) for i in range(500)], [nan] * 500, most=10)[1])


def test_labels_are_spread_upwards_in_their_order() -> None:
    assert spread([7.0, 3.4, 3.5, 3.45], 0.2) == pytest.approx([7.0, 3.4, 3.8, 3.6])


def test_words_for_quantities() -> None:
    assert [bulk(x) for x in (None, nan, 0.5, 999, 1234, 5_200_000, 3e9)] == [
        "–",
        "–",
        "0.5",
        "999",
        "1.23 k",
        "5.2 M",
        "3 G",
    ]
    assert [duration(x) for x in (None, 42.2, 200, 7500)] == ["–", "42 s", "3 min 20 s", "2 h 5 min"]
    assert escaped("a\n<b>\x07") == "a\n&lt;b&gt;�"
    assert worded("Use --training.precision bf16. See `smallgpt train`.") == (
        "Use <code>--training.precision</code> bf16. See <code>smallgpt train</code>."
    )

"""The first hour of a newcomer: a text, a model, an interruption, the rest of the training, a score, a story, a verdict."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import smallgpt
from smallgpt.infrastructure.tokenizers import load_tokenizer
from smallgpt.interfaces.cli import main

SMALL = ["--model.n-layer=1", "--model.n-head=2", "--model.n-embd=48", "--model.block-size=48", "--model.dropout=0.1"]
SHORT = ["--training.batch-size=8", "--training.threads=1", "--training.max-steps=120", "--evaluation.every=20"]
RATES = ["--optimizer.name=muon", "--optimizer.learning-rate=1e-2"]


@dataclass(frozen=True)
class Place:
    """Where it happened, and what the interrupted and the resumed training said."""

    folder: Path
    stopped: str
    resumed: str


def command(folder: Path, *words: str, optimized: bool = False) -> "subprocess.Popen[str]":
    """A process of its own, as a shell would start it; `python -O` takes assertions out."""
    python = [sys.executable, "-O"] if optimized else [sys.executable]
    return subprocess.Popen(
        [*python, "-m", "smallgpt", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """What it prints; it must leave with that code and say nothing on standard error but where the time went."""
    out, err = process.communicate(timeout=120)
    assert (process.returncode, said(err)) == (code, [])
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("newcomer")
    pick = random.Random(0).choice
    lines = [f"Once {pick(['Tom', 'Zoë'])} saw a {pick(['kite', 'dog'])} — {n % 7} times." for n in range(300)]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(lines), encoding="utf-8")

    prepare = command(folder, "prepare", "text", "stories.txt", "--vocab-size", "320", "--out", "data")
    words, _ = prepare.communicate(timeout=120)
    assert prepare.returncode == 0
    assert "next: smallgpt train --data data" in words

    training = command(folder, "train", "--data", "data", *SMALL, *SHORT, *RATES)
    metrics = folder / "runs" / "data" / "metrics.jsonl"
    while not metrics.exists() or '"step": 25,' not in metrics.read_text():
        assert training.poll() is None, training.communicate()
        time.sleep(0.01)
    training.send_signal(signal.SIGINT)
    stopped = finish(training, 128 + signal.SIGINT)
    next_words = stopped.splitlines()[-1].split()
    assert next_words[0] == "smallgpt"
    resumed = finish(command(folder, *next_words[1:], optimized=True))
    return Place(folder, stopped, resumed)


def call(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The same in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(words)
    out, err = capsys.readouterr()
    assert (left.value.code, said(err)) == (0, [])
    return out


def said(err: str) -> list[str]:
    """The lines of standard error that do not tell where the time went."""
    return [line for line in err.splitlines() if not line.startswith("time  ")]


@pytest.fixture(autouse=True)
def there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)


def test_training_shows_what_it_does_and_learns(place: Place) -> None:
    for words in (
        "parameters",
        "machine  cpu, 1 thread, ",
        "precision: ",
        "compare  uniform ",
        "step 20: ",
    ):
        assert words in place.stopped
    assert "resumed  from step " in place.resumed
    for words in ("whole validation split: ", "is below the bigram line", "trained  120 steps", "report   runs/data"):
        assert words in place.resumed
    events = [json.loads(line) for line in Path("runs/data/metrics.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in events if event["event"] == "train"]
    assert steps == list(range(1, 121))
    final = next(event for event in events if event.get("final"))
    assert final["nats_per_token"] < next(event for event in events if event["event"] == "start")["baselines"]["bigram"]


def test_what_it_says_comes_next_works(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    following = place.resumed.split("\nnext\n")[1].splitlines()
    assert len(following) == 3
    for line in following:
        assert call(capsys, *shlex.split(line)[1:])


def test_two_evaluations_print_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    first = call(capsys, "evaluate", "runs/data")
    assert finish(command(Path.cwd(), "evaluate", "runs/data")) == first
    score = json.loads(call(capsys, "evaluate", "runs/data", "--json"))
    assert f"nats per token  {score['nats_per_token']:.4f}" in first
    assert f"bits per byte   {score['bits_per_byte']:.4f}   no interval: " in first
    assert "bits_per_byte_interval" not in score, "of so little text"
    best = json.loads(Path("runs/data/checkpoints/best.json").read_text())["checkpoint"]
    assert first.startswith(f"model           runs/data/checkpoints/{best}\n")
    events = [json.loads(line) for line in Path("runs/data/metrics.jsonl").read_text().splitlines()]
    seen = [event for event in events if event["event"] == "validation" and event["step"] == int(best[5:])]
    assert seen[-1]["nats_per_token"] == pytest.approx(
        score["nats_per_token"], rel=0.02
    )  # there in the run's precision


def test_a_seed_tells_the_same_story_again(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "runs/data", "--prompt", "Once Zoë", "--seed", "7"]
    first = call(capsys, *words)
    assert first.startswith("Once Zoë")
    assert finish(command(Path.cwd(), *words)) == first
    assert len({call(capsys, *words[:-1], str(seed), "--temperature", "1.5") for seed in range(4)}) > 1
    assert len({call(capsys, *words[:-1], str(seed), "--temperature", "0") for seed in range(4)}) == 1


def test_stories_end_where_stories_end(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "runs/data", "--prompt", "Once", "--seed", "1", "--num-samples", "10", "--json"]
    samples = json.loads(call(capsys, *words))
    ended = [sample for sample in samples if sample["end"] == "end-of-text"]
    assert len(ended) >= 8
    assert all(sample["text"].endswith("times.") for sample in ended[:3])
    assert not any("<|endoftext|>" in sample["text"] for sample in samples)


def test_text_comes_in_whole_characters_as_it_is_made() -> None:
    process = command(Path.cwd(), "generate", "runs/data", "--prompt", "Zoë — ", "--temperature", "3", "--seed", "2")
    assert process.stdout is not None
    pieces = b""
    with process:
        while piece := os.read(process.stdout.fileno(), 5):
            pieces += piece
    assert process.returncode == 0
    text = pieces.decode("utf-8")  # strictly: no half of a character was ever printed
    assert text.startswith("Zoë — ")


def test_the_report_is_one_page_that_needs_nothing_else() -> None:
    class Links(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.found += [value or "" for name, value in attributes if name in ("src", "href")]

    page = Path("runs/data/report.html").read_text(encoding="utf-8")
    reader = Links()
    reader.feed(page)
    assert not [link for link in reader.found if not link.startswith(("data:", "#"))]
    for words in ("bigram", "Once upon a time", "n_embd", "<svg"):
        assert words in page


def test_the_model_is_a_library_s_too(place: Place) -> None:
    model = smallgpt.load("runs/data")
    tokenizer = load_tokenizer(Path("data/tokenizer.json"))
    ids = torch.tensor([tokenizer.encode("Once Tom saw a")])
    torch.manual_seed(0)
    out = model.generate(ids, max_new_tokens=3, temperature=0.5, top_k=20)
    assert tokenizer.decode(out[0].tolist()).startswith("Once Tom saw a")
    assert out.shape == (1, ids.size(1) + 3)


def test_the_doctor_looks_at_the_machine_and_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    machine = call(capsys, "doctor")
    for words in ("torch", "precision", "threads"):
        assert words in machine
    assert call(capsys, "doctor", "runs/data").startswith(machine[:20])
    assert "runs/data" in call(capsys, "doctor", "runs/data")


def test_a_second_run_gets_a_folder_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("runs/data/metrics.jsonl").read_bytes()
    words = [word for word in SHORT if "max-steps" not in word]
    said = call(capsys, "train", "--data", "data", *SMALL, *words, "--training.max-steps=2")
    assert "run      runs/data-2" in said
    assert Path("runs/data/metrics.jsonl").read_bytes() == before


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs a shell")
def test_a_reader_that_has_enough_is_no_error() -> None:
    line = f"{sys.executable} -m smallgpt generate runs/data --max-new-tokens 5000 --temperature 3 | head -c 1"
    ended = subprocess.run(["/bin/bash", "-o", "pipefail", "-c", line], capture_output=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, b"")

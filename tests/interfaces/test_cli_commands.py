"""prepare, train, evaluate, generate and kernels on a toy, from the words typed to what is printed and written."""

import json
import random
import tomllib
from pathlib import Path

import pytest
from torch import Tensor

from smallgpt.domain.config import DataConfig, GPTConfig, RunConfig
from smallgpt.infrastructure.corpora.parts import Corpus
from smallgpt.infrastructure.tokenizing import making
from smallgpt.infrastructure.tokenizing.making import Options
from smallgpt.interfaces.cli import preparing
from smallgpt.interfaces.cli.preparing import default_folder
from smallgpt.kernels.select import BACKENDS, LOSS_BACKENDS
from tests.interfaces.conftest import Run, leave

TINY = [
    "--model.n-layer=1",
    "--model.n-head=2",
    "--model.n-embd=32",
    "--model.block-size=32",
    "--training.batch-size=4",
    "--training.precision=fp32",
    "--training.threads=1",
    "--training.compile=off",
    "--evaluation.sample-tokens=8",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text files, a data folder and a trained run."""
    folder = tmp_path_factory.mktemp("place")
    pick = random.Random(0).choice
    stories = [f"Once {pick(['Tom', 'Mia'])} had a {pick(['kite', 'dog'])} and {n} hats — héllo." for n in range(120)]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    (folder / "other.jsonl").write_text("\n".join(json.dumps({"text": story}) for story in stories[:9]))
    data, out = str(folder / "data"), str(folder / "run")
    assert leave("prepare", "text", str(folder / "stories.txt"), "--tokenizer", "bytes", "--out", data) == 0
    assert leave("train", "--data", data, "--out", out, "--training.max-steps", "6", *TINY) == 0
    return folder


def test_prepare_says_what_it_made_and_what_comes_next(run: Run, place: Path) -> None:
    out = place / "fresh"
    code, words, _ = run("prepare", "text", str(place / "other.jsonl"), "--tokenizer", "bytes", "--out", str(out))
    assert code == 0
    assert f"{out}: 257 token ids (bytes)" in words
    assert "to beat     uniform 5.55 | unigram " in words
    assert f"next: smallgpt train --data {out}" in words


def test_prepare_refuses_to_replace_unless_told(run: Run, place: Path) -> None:
    arguments = ["prepare", "text", str(place / "other.jsonl"), "--tokenizer=bytes", "--out", str(place / "again")]
    assert run(*arguments)[0] == 0
    code, _, err = run(*arguments)
    assert code == 3
    assert "--overwrite" in err
    assert run(*arguments, "--overwrite")[0] == 0


def test_prepare_json_is_the_manifest_and_nothing_else(run: Run, place: Path) -> None:
    source, out = str(place / "other.jsonl"), place / "json"
    _, words, _ = run("prepare", "text", source, "--tokenizer", "bpe", "--vocab-size=280", "--out", str(out), "--json")
    assert json.loads(words) == json.loads((out / "dataset.json").read_text())
    assert json.loads(words)["tokenizer"]["kind"] == "bpe"


def test_prepare_hub_and_bins_take_folders(run: Run, place: Path) -> None:
    hub = place / "hub"
    hub.mkdir()
    (hub / "train.jsonl").write_text("\n".join(json.dumps({"story": f"Tom had {n} hats."}) for n in range(50)))
    arguments = ["--column", "story", "--tokenizer", "bytes", "--validation-share", "0.2", "--json"]
    code, words, err = run("prepare", "hub", str(hub), *arguments, "--out", str(place / "from-hub"))
    assert (code, err.count("Traceback")) == (0, 0)
    splits = json.loads(words)["splits"]
    assert splits["train"]["documents"] + splits["validation"]["documents"] == 50
    code, words, _ = run("prepare", "bins", str(place / "from-hub"), "--out", str(place / "from-bins"), "--json")
    assert code == 0
    assert json.loads(words)["splits"]["train"]["sha256"] == splits["train"]["sha256"]


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (("demo", "bpe", 2048), "data/demo"),
        (("demo", "bpe", 1024), "data/demo-1024"),
        (("demo", "bytes", 2048), "data/demo-bytes"),
        (("tinystories", "bpe", 2048), "data/tinystories-bpe"),
        (("tinystories", "gpt2", 2048), "data/tinystories-gpt2"),
        (("book", "lib/tokenizer.json", 2048), "data/book-tokenizer"),
    ],
)
def test_the_folder_of_a_corpus_tells_its_tokenizer(words: tuple[str, str, int], folder: str) -> None:
    assert str(default_folder(*words)) == folder


def test_a_vocabulary_is_chosen_for_the_usual_model() -> None:
    usual = GPTConfig()
    assert (preparing.N_LAYER, preparing.N_EMBD, preparing.BLOCK_SIZE) == (4, 256, 128)
    assert (usual.n_layer, usual.n_embd, usual.block_size) == (4, 256, 128)


def test_a_missing_corpus_is_prepared_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from smallgpt.domain.processes import ALONE
    from smallgpt.interfaces.cli.train import _data_folders
    from smallgpt.interfaces.phases import Phases

    monkeypatch.chdir(tmp_path)
    calls = []

    def make(corpus: Corpus, out: Path, options: Options, _progress: object) -> None:
        calls.append((corpus.name, out, options.tokenizer.kind, options.tokenizer.vocab_size))
        out.mkdir(parents=True)

    monkeypatch.setattr(making, "make_data_folder", make)
    config = RunConfig(data=DataConfig(corpus="demo", tokenizer="bytes"))
    first, second, folder = Phases(), Phases(), Path("data/demo-bytes")
    for phases in (first, second):
        assert _data_folders(config, Console(), phases, ALONE) == (folder,)
    assert (list(first.seconds), list(second.seconds)) == (["preparing data"], [])
    assert calls == [("demo", folder, "bytes", 2048)]
    assert capsys.readouterr().out == "data     preparing data/demo-bytes\n"


def test_train_shows_the_run_and_ends_with_where_everything_is(run: Run, place: Path) -> None:
    out = place / "shown"
    code, words, err = run("train", "--data", str(place / "data"), "--out", str(out), "--training.max-steps=3", *TINY)
    assert (code, err) == (0, "")
    for part in (
        "uniform 5.55 | unigram",
        "step 3/3 · loss",
        "whole validation split:",
        f"run      {out} ",
        "Once upon",
    ):
        assert part in words
    commands = [line.strip() for line in words.split("next\n")[1].splitlines() if line.startswith("  ")]
    assert [command.split()[:3] for command in commands] == [
        ["smallgpt", name, str(out)] for name in ("generate", "evaluate", "doctor")
    ]


def test_train_keeps_the_settings_it_was_given_and_takes_the_vocabulary_from_the_data(place: Path) -> None:
    config = tomllib.loads((place / "run" / "config.toml").read_text())
    assert config["model"]["n_embd"] == 32
    assert config["model"]["vocab_size"] == 384  # 257 ids, in rows of 128
    assert config["data"]["path"] == str(place / "data")


def test_train_does_not_touch_a_folder_that_is_there(run: Run, place: Path) -> None:
    before = sorted((place / "run").rglob("*"))
    code, out, err = run("train", "--data", str(place / "data"), "--out", str(place / "run"), *TINY)
    assert (code, out) == (2, "")
    assert f"smallgpt train --resume {place / 'run'}" in err
    assert sorted((place / "run").rglob("*")) == before
    code, _, err = run("train", "--resume", str(place / "run"), "--out", str(place / "else"))
    assert code == 2
    assert "leave --out" in err


def test_train_uses_the_data_folders_name_when_there_is_no_preset(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    code, words, _ = run("train", "--data", "data", "--training.max-steps=2", *TINY)
    assert code == 0
    assert (place / "runs" / "data" / "config.toml").exists()
    assert "smallgpt evaluate runs/data" in words


def test_resume_goes_on_with_the_runs_own_settings(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallgpt.interfaces import signals

    out = place / "stopped"
    asked = iter([False, False, True])
    with monkeypatch.context() as patched:  # a Ctrl-C after two steps
        stop = signals.StopRequest(2)
        patched.setattr(signals.StopRequest, "__call__", lambda _: next(asked, False))
        patched.setattr(signals, "StopRequest", lambda **_: stop)
        code, words, _ = run("train", "--data", str(place / "data"), "--out", str(out), "--training.max-steps=5", *TINY)
    assert code == 130
    assert f"stopped after step 2 and saved; go on with\n  smallgpt train --resume {out}" in words
    code, words, _ = run("train", "--resume", str(out))
    assert code == 0
    assert "resumed  from step 2" in words
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "train"] == [1, 2, 3, 4, 5]


def test_evaluate_reports_the_same_numbers_in_words_and_json(run: Run, place: Path) -> None:
    _, words, _ = run("evaluate", str(place / "run"))
    code, out, _ = run("evaluate", str(place / "run"), "--json")
    result = json.loads(out)
    assert code == 0
    assert {"nats_per_token", "bits_per_byte", "perplexity", "tokens", "bytes", "baselines"} <= set(result)
    low, high = result["bits_per_byte_interval"]
    assert low < result["bits_per_byte"] < high
    assert f"nats per token  {result['nats_per_token']:.4f}   over {result['tokens']:,} tokens" in words
    assert f"bits per byte   {result['bits_per_byte']:.4f}   95 % interval {low:.4f} to {high:.4f}" in words
    assert "compare         uniform 5.55 | unigram" in words
    assert run("evaluate", str(place / "run"), "--json")[1] == out


def test_evaluate_gives_no_interval_for_a_text_of_few_blocks(run: Run, place: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Ben saw a fish. ", encoding="utf-8")
    code, words, _ = run("evaluate", str(place / "run"), "--text", str(text))
    assert code == 0
    assert "   no interval: 1 block of text, fewer than 10\n" in words
    assert "bits_per_byte_interval" not in json.loads(
        run("evaluate", str(place / "run"), "--text", str(text), "--json")[1]
    )


def test_evaluate_takes_the_splits_text_as_files_too(run: Run, place: Path) -> None:
    _, whole, _ = run("evaluate", str(place / "run"), "--text", str(place / "stories.txt"), "--json")
    _, parts, _ = run("evaluate", str(place / "run"), "--split", "train", "--json")
    stories = (place / "stories.txt").read_text(encoding="utf-8").split("\n<|endoftext|>\n")
    assert json.loads(whole)["bytes"] == sum(len(story.encode()) for story in stories)
    assert json.loads(whole)["tokens"] == json.loads(whole)["bytes"] + len(stories)
    assert json.loads(parts)["tokens"] < json.loads(whole)["tokens"]
    code, two, _ = run("evaluate", str(place / "run"), "--text", *[str(place / "other.jsonl")] * 2, "--json")
    assert code == 0
    assert json.loads(two)["bytes"] == sum(len(story.encode()) for story in stories[:9])  # named twice, read once


def test_evaluate_refuses_data_of_another_tokenizer_and_empty_text(run: Run, place: Path, tmp_path: Path) -> None:
    other = str(tmp_path / "bpe")
    run("prepare", "text", str(place / "other.jsonl"), "--tokenizer", "bpe", "--vocab-size", "300", "--out", other)
    code, _, err = run("evaluate", str(place / "run"), "--data", other)
    assert code == 4
    assert "uses another tokenizer" in err
    (tmp_path / "blank.txt").write_text(" \n\n")
    code, _, err = run("evaluate", str(place / "run"), "--text", str(tmp_path / "blank.txt"))
    assert code == 3
    assert "there is no text in" in err
    assert run("evaluate", str(place / "run"), "--data", other, "--text", other)[0] == 2


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallgpt.kernels.launching.INTERPRETING", False)


@pytest.mark.usefixtures("no_interpreter")
def test_train_refuses_kernels_that_cannot_run_in_its_own_flags(run: Run, place: Path, tmp_path: Path) -> None:
    words = ["train", "--data", str(place / "data"), "--out", str(tmp_path / "run"), *TINY, "--training.device=cpu"]
    code, _, err = run(*words, "--kernels.layer-norm=triton")
    assert code == 6
    why, remedy = err.splitlines()
    assert why.startswith("smallgpt: layer_norm: triton does not run on cpu: the Triton kernels need a GPU, and")
    assert remedy == "Use --kernels.layer-norm auto, or another --training.device."
    words[words.index("--training.precision=fp32")] = "--training.precision=fp16"
    _, _, err = run(*words, "--kernels.backend=triton")
    assert err.splitlines()[1] == "Use --kernels.attention auto, or another --training.device or --training.precision."


@pytest.mark.usefixtures("no_interpreter")
def test_kernels_check_compares_what_runs_here_and_fails_only_for_what_was_asked_for(run: Run) -> None:
    code, out, _ = run("kernels", "check", "--device", "cpu", "--json")
    rows = json.loads(out)
    assert code == 0, "Triton cannot run here, and nobody asked for it"
    assert all(set(row) == {"operation", "backend", "dtype", "passed", "words", "error", "available"} for row in rows)
    assert len(rows) == 3 * (3 + 3 + 5)
    for row in rows:
        assert row["passed"] == row["available"] == (not row["backend"].startswith("triton"))
    code, out, _ = run("kernels", "check", "--device", "cpu", "--backend", "triton")
    assert code == 6
    assert "does not run" in out
    assert "TRITON_INTERPRET=1" in out


def test_kernels_check_finds_what_is_wrong(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = BACKENDS["torch"]._replace(layer_norm=lambda x, weight, bias, eps: 1.01 * x)
    monkeypatch.setitem(BACKENDS, "torch", faulty)
    code, out, _ = run("kernels", "check", "--device", "cpu", "--backend", "torch")
    assert code == 6
    assert out.count("WRONG") == 3, "in every dtype"
    assert len(out.splitlines()) < 12

    def breaks(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        raise ZeroDivisionError("division by zero")

    faulty = BACKENDS["torch"]._replace(layer_norm=breaks)
    monkeypatch.setitem(BACKENDS, "torch", faulty)
    code, out, _ = run("kernels", "check", "--device", "cpu")
    assert code == 6
    assert out.count("FAILED") == 3
    assert "division by zero" in out


def test_kernels_check_knows_a_new_backend_by_its_place_in_the_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (BACKENDS, LOSS_BACKENDS):
        monkeypatch.setitem(table, "my-own", BACKENDS["torch"])
    code, out, _ = run("kernels", "check", "--device", "cpu", "--backend", "my-own", "--json")
    assert code == 0
    assert {row["backend"] for row in json.loads(out)} == {"my-own"}
    code, out, err = run("kernels", "check", "--backend", "my-won")
    assert (code, out) == (2, "")
    assert err.startswith("smallgpt: unknown backend 'my-won'; did you mean my-own?\n")


@pytest.mark.usefixtures("no_interpreter")
def test_kernels_list_shows_every_candidate_once_and_what_auto_takes(run: Run) -> None:
    code, out, _ = run("kernels", "list", "--device", "cpu", "--precision", "fp32", "--json")
    rows = json.loads(out)
    assert code == 0
    assert all(set(row) == {"operation", "backend", "available", "reason", "chosen"} for row in rows)
    chosen = [row["operation"] for row in rows if row["chosen"]]
    assert sorted(chosen) == ["attention", "layer_norm", "linear_cross_entropy"]
    words = run("kernels", "list", "--device", "cpu", "--precision", "fp32")[1]
    assert words.startswith("cpu, fp32 (asked for); for heads of 64")
    assert sum(line.startswith("* ") for line in words.splitlines()) == 1 + len(chosen)

"""Commands on URLs: data, mirrors, resuming and models, from the words typed to what is where."""

import json
import random
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import smallgpt
from smallgpt.domain.config import DataConfig, RunConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.processes import ALONE
from smallgpt.infrastructure.checkpoints import load_checkpoint
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces.cli.display import PatientConsole
from smallgpt.interfaces.cli.run_places import RunPlace, place_of_launch, run_place
from smallgpt.interfaces.cli.train import _fetch_run
from tests.faulty_store import FaultyStore, fail_on, faulty_store, files_of, stored, uploaded
from tests.infrastructure.texts import write_texts
from tests.interfaces.conftest import Run, leave

TINY = [
    "--model.n-layer=1",
    "--model.n-head=2",
    "--model.n-embd=32",
    "--model.block-size=32",
    "--model.dropout=0",
    "--training.batch-size=4",
    "--training.precision=fp32",
    "--training.threads=1",
    "--training.compile=off",
    "--evaluation.sample-every=0",
    "--evaluation.every=0",
    "--evaluation.prompt=Tom",
    "--checkpoint.every=2",
]
URL = "faulty://me:secret@bucket/runs/first"
ROOT = "me:secret@bucket/runs/first"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder, and a run of 6 steps on it whose mirror is in a folder of this disk."""
    place = tmp_path_factory.mktemp("made")
    pick = random.Random(0).choice
    texts = [f"Once {pick(['Tom', 'Mia'])} had a {pick(['kite', 'dog'])} and {n} hats." for n in range(100)]
    write_texts(texts[:90], texts[90:], place / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        words = ["--data", "file://data", "--checkpoint.mirror", "file://bucket/first", "--out", "first"]
        assert leave("train", *words, "--training.max-steps=6", *TINY) == 0
    return place


@pytest.fixture
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyStore]]:
    """The data and the run in a store, and an empty machine."""
    monkeypatch.setenv("SMALLGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with faulty_store() as faulty:
        uploaded(made / "data", "me:secret@bucket/data")
        uploaded(made / "bucket" / "first", ROOT)
        config = f"/{ROOT}/config.toml"
        content = stored(ROOT)["config.toml"].replace(b"file://data", b"faulty://me:secret@bucket/data")
        FaultyStore().pipe_file(config, content.replace(b"file://bucket/first", b"faulty://bucket/runs/first"))
        yield faulty


def losses(run: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in RunFolder(run).metrics() if event["event"] == "train"}


def test_a_run_on_data_behind_a_url_is_that_on_the_folder_and_its_mirror_is_the_run(made: Path) -> None:
    plain = made / "plain"
    assert leave("train", "--data", str(made / "data"), "--out", str(plain), "--training.max-steps=6", *TINY) == 0
    assert losses(plain) == losses(made / "first")
    mirror, run = files_of(made / "bucket" / "first"), files_of(made / "first")
    assert run.pop("report.html")
    assert mirror == run
    assert [path.name for path in RunFolder(made / "bucket" / "first").checkpoints()] == [
        "step-00000004",
        "step-00000006",
    ]
    config = tomllib.loads((made / "first" / "config.toml").read_text())
    assert config["data"]["path"] == "file://data"
    assert config["checkpoint"]["mirror"] == "file://bucket/first"


def test_a_run_goes_on_from_its_mirror_on_an_empty_machine(
    store: type[FaultyStore], made: Path, run: Run, tmp_path: Path
) -> None:
    """To the losses of the run that went on where it was; the mirror then has them too, and no file has the password."""
    here = tmp_path / "longer"
    shutil.copytree(made / "bucket" / "first", here)
    more = ["--training.max-steps=9", "--checkpoint.mirror", f"file://{tmp_path}/other"]
    assert leave("train", "--resume", str(here), "--data", str(made / "data"), *more) == 0
    code, out, err = run("train", "--resume", URL, "--out", "runs/again", "--training.max-steps=9")
    assert code == 0, err
    assert losses(Path("runs/again")) == losses(here)
    assert max(losses(Path("runs/again"))) == 9
    mirror, again = stored(ROOT), files_of(Path("runs/again"))
    assert again.pop("report.html")
    assert mirror == again
    assert b"secret" not in b"".join(again.values())
    assert "secret" not in out + err
    shutil.copytree(made / "first", tmp_path / "first")
    words = ["--data", str(made / "data"), "--checkpoint.mirror", URL, "--training.max-steps=7"]
    code, _, err = run("train", "--resume", "first", *words)
    assert (code, "has step-00000009, and first nothing after step-00000006" in err) == (4, True), err
    assert stored(ROOT) == mirror


def test_a_launch_that_is_started_again_goes_on_in_the_run_that_it_fetched(
    store: type[FaultyStore], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first round died before it held the run. Another launch is told that the folder is taken."""
    for out in (Path("runs/x"), None):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night")
        first = place_of_launch(None, RunConfig(), out, URL)
        assert (first.resumes, first.source) == (True, URL)
        _fetch_run(URL, first.folder, PatientConsole(quiet=True), ALONE)
        assert place_of_launch(None, RunConfig(), out, URL) == RunPlace(first.folder, resumes=True)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "day")
        with pytest.raises(ConfigError, match="runs/x is there already"):
            place_of_launch(None, RunConfig(), Path("runs/x"), URL)
    assert place_of_launch(None, RunConfig(), None, URL).folder == Path("runs/first-2")


def test_what_is_fetched_takes_no_folder_in_which_a_run_may_have_begun(store: type[FaultyStore], run: Run) -> None:
    Path("runs/first").mkdir(parents=True)
    Path("runs/first/lock").write_text("process 1 on here\n")
    assert run_place(None, RunConfig(), None, URL).folder == Path("runs/first")
    Path("runs/first/config.toml").write_text("")
    assert run_place(None, RunConfig(), None, URL).folder == Path("runs/first-2")
    data = RunConfig(data=DataConfig(path=Path("first")))
    assert run_place(None, data, None, None).folder == Path("runs/first"), "a new run is made in it"
    code, _, err = run("train", "--resume", URL, "--out", "runs/first")
    assert (code, "runs/first is there already" in err) == (2, True)


@pytest.mark.slow
def test_a_url_that_is_resumed_has_its_own_folder_name_and_no_other_run_is_touched(
    store: type[FaultyStore], run: Run
) -> None:
    Path("runs/first").mkdir(parents=True)
    Path("runs/first/metrics.jsonl").write_text("")
    code, _, err = run("train", "--resume", URL, "--out", "runs/first")
    assert (code, "runs/first is there already" in err) == (2, True)
    store.rule.append(fail_on("get", "optimizer", PermissionError("Forbidden")))
    code, _, err = run("train", "--resume", URL)
    assert code == 4
    assert "optimizer.safetensors: access denied (Forbidden)" in err
    assert not Path("runs/first-2").exists()
    store.rule.clear()
    assert run("train", "--resume", URL, "--training.max-steps=7")[0] == 0
    assert max(losses(Path("runs/first-2"))) == 7


def test_models_are_taken_by_url(store: type[FaultyStore], made: Path, run: Run, tmp_path: Path) -> None:
    words = ["--prompt", "Once Tom", "--max-new-tokens=12", "--seed=1"]
    here = run("generate", str(made / "first" / "checkpoints" / "step-00000006"), *words)
    assert run("generate", f"{URL}/checkpoints/step-00000006", *words)[1] == here[1]
    scored = json.loads(run("evaluate", URL, "--json")[1])
    local = json.loads(run("evaluate", str(made / "first"), "--data", str(made / "data"), "--json")[1])
    assert scored == local, "on the run's own data, which is in the store"
    code, out, _ = run("export", URL, "--to", "seed", "--out", "exported")
    assert (code, "exported" in out) == (0, True)
    assert run("inspect", URL, "--prompt", "Once")[0] == 0
    store.asked.clear()
    assert run("report", URL, "--out", "first.html")[0] == 0
    code, out, _ = run("doctor", URL)
    assert (code, "run faulty://bucket/runs/first" in out) == (0, True)
    assert not [path for what, path in store.asked if what == "get"], "no weights"
    model = smallgpt.load(f"{URL}/checkpoints/step-00000006")
    assert model.path.name == "step-00000006"


@pytest.mark.slow
def test_a_run_starts_from_a_model_behind_a_url(store: type[FaultyStore], made: Path, run: Run) -> None:
    words = ["--training.threads=1", "--training.compile=off", "--evaluation.sample-every=0", "--training.max-steps=1"]
    code, out, err = run("train", "--init", URL, "--data", "faulty://me:secret@bucket/data", "--out", "tuned", *words)
    assert code == 0, err
    config = tomllib.loads(Path("tuned/config.toml").read_text())
    assert config["training"]["init"] == "faulty://bucket/runs/first"
    assert config["data"]["path"] == "faulty://bucket/data"
    assert "secret" not in out + err + Path("tuned/metrics.jsonl").read_text()
    assert run("evaluate", "tuned", "--data", "faulty://me:secret@bucket/data")[0] == 0
    assert run("doctor", "tuned")[0] == 0
    assert run("report", "tuned")[0] == 0


@pytest.mark.slow
def test_folders_of_a_mixture_may_be_urls(store: type[FaultyStore], made: Path, run: Run) -> None:
    mixed = ["--data", "faulty://me:secret@bucket/data=3", "--data", f"{made / 'data'}=1"]
    code, _, err = run("train", *mixed, "--out", "mixed", "--training.max-steps=1", *TINY)
    assert code == 0, err
    config = tomllib.loads(Path("mixed/config.toml").read_text())
    assert config["data"]["mixture"] == [
        {"path": "faulty://bucket/data", "weight": 3.0},
        {"path": str(made / "data"), "weight": 1.0},
    ]
    assert run("doctor", "mixed")[0] == 0


def test_a_mirror_that_fails_warns_and_is_an_error_at_the_end_only(
    store: type[FaultyStore], made: Path, run: Run
) -> None:
    store.rule.append(fail_on("put", "runs/new/checkpoints", ConnectionResetError("cut")))
    words = ["--checkpoint.mirror", "faulty://bucket/runs/new", "--out", "new", "--training.max-steps=4", *TINY]
    code, out, err = run("train", "--data", str(made / "data"), *words)
    assert code == 4
    assert "not mirrored yet: faulty://bucket/runs/new/checkpoints/step-0000000" in out
    assert "step-00000002, step-00000004, checkpoints/best.json of new could not be copied: " in err
    assert "`smallgpt train --resume new` copies it when the store answers" in err
    assert load_checkpoint(Path("new/checkpoints/step-00000004")).step == 4
    store.rule.clear()
    assert run("train", "--resume", "new")[0] == 0
    again = files_of(Path("new"))
    assert again.pop("report.html")
    assert stored("bucket/runs/new") == again


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train", "--data", "s3://bucket/stories"], 2, "s3://... needs the package s3fs: pip install s3fs"),
        (["generate", "gs://bucket/run", "--prompt", "a"], 2, "gs://... needs the package gcsfs"),
        (["train", "--data", "faulty://bucket/nowhere"], 3, "faulty://bucket/nowhere: no dataset.json there"),
        (["train", "--resume", "faulty://bucket/nowhere"], 4, "faulty://bucket/nowhere: no run there"),
        (["generate", "faulty://bucket/nowhere", "--prompt", "a"], 4, "faulty://bucket/nowhere: neither a run"),
        (["train", "--data", "DATA", "--checkpoint.mirror", "runs/x"], 2, "checkpoint.mirror: 'runs/x' is no URL"),
        (["train", "--data", "DATA", "--checkpoint.mirror", URL], 4, "faulty://bucket/runs/first holds another run"),
        (["train", "demo", "--resume", URL], 2, "--resume takes its settings from faulty://bucket/runs/first"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(
    words: list[str],
    code: int,
    said: str,
    store: type[FaultyStore],
    made: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for absent in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, absent, None)
    found, _, err = run(*(str(made / "data") if word == "DATA" else word for word in words))
    assert (found, err.count("\n") <= 2, said in err) == (code, True, True), err
    assert "secret" not in err
    assert not Path("runs").exists() or not list(Path("runs").rglob("config.toml"))


def test_access_is_denied_in_words(store: type[FaultyStore], run: Run) -> None:
    store.rule.append(fail_on("cat", "dataset.json", PermissionError("Forbidden")))
    code, _, err = run("train", "--data", "faulty://me:secret@bucket/data")
    assert code == 3
    assert "smallgpt: faulty://bucket/data/dataset.json: access denied (Forbidden); check the credentials" in err
    assert "secret" not in err

"""Data folders, checkpoints and runs out of a store: whole or absent, fetched once, and damaged ones refused."""

import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.errors import CheckpointError, DataError
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.checkpoints import RunCheckpoints, newest_good, verify
from smallgpt.infrastructure.copies import CONTENT_ATTEMPTS, data_copy, fetch_run, model_copy
from smallgpt.infrastructure.run_folder import RunFolder
from tests.faulty_store import CUT, FaultyStore, fail_on, files_of, stored, uploaded
from tests.infrastructure.texts import write_texts

DATA, RUN = "faulty://me:secret@bucket/stories", "faulty://bucket/runs/first"
MakeState = Callable[[int], TrainingState]
pytestmark = pytest.mark.usefixtures("faulty")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "stories"
    write_texts([f"Story {n}: once there was a dog." for n in range(30)], ["The cat sat."], out)
    return out


@pytest.fixture
def data(made: Path, faulty: type[FaultyStore]) -> Path:
    """A data folder that is in the store too."""
    uploaded(made, "me:secret@bucket/stories")
    return made


@pytest.fixture
def run(tmp_path: Path, faulty: type[FaultyStore], make_state: MakeState, tiny: GPTConfig) -> RunFolder:
    """A run of three checkpoints, the first one its best, that is in the store too."""
    folder = RunFolder(tmp_path / "made" / "first")
    folder.write_config(RunConfig(model=tiny))
    folder.metrics_file.write_text('{"event": "start", "step": 0}\n')
    saving = RunCheckpoints(folder, tiny, None, keep=2)
    saving.save(make_state(1))
    saving.mark_best(1)
    for step in (2, 3):
        saving.save(make_state(step))
    uploaded(folder.path, "bucket/runs/first")
    return folder


def gets(faulty: type[FaultyStore]) -> list[str]:
    """What was fetched, in order."""
    return [Path(path).name for what, path in faulty.asked if what == "get"]


def test_a_data_folder_is_fetched_once_and_is_the_same(data: Path, faulty: type[FaultyStore], tmp_path: Path) -> None:
    told: list[tuple[int, int | None, str]] = []
    copy = data_copy(DATA, lambda *words, **_: told.append(words[:3]))
    assert copy.parent == tmp_path / "cache" / "data"
    assert copy.name.startswith("stories-")
    assert files_of(copy) == files_of(data)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name], "no lock, no draft"
    assert told[-1][2] == "bytes of faulty://bucket/stories fetched"
    faulty.asked.clear()
    assert data_copy(DATA) == copy
    assert faulty.asked == [("cat", "/me:secret@bucket/stories/dataset.json")]


def test_other_data_at_the_same_place_is_another_copy(data: Path, faulty: type[FaultyStore]) -> None:
    before = data_copy(DATA)
    manifest = json.loads((data / "dataset.json").read_text())
    changed = json.dumps(manifest | {"source": "changed"}).encode()
    FaultyStore().pipe_file("/me:secret@bucket/stories/dataset.json", changed)
    after = data_copy(DATA)
    assert after != before
    assert before.exists(), "a run may be reading it"


def test_a_fetch_goes_on_with_the_files_that_are_whole(data: Path, faulty: type[FaultyStore], tmp_path: Path) -> None:
    faulty.rule.append(fail_on("get", "validation.bin", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        data_copy(DATA)
    assert not [path for path in (tmp_path / "cache" / "data").iterdir() if not path.name.startswith(".")]
    first = gets(faulty)[:-1]
    assert "train.bin" in first
    faulty.rule.clear()
    faulty.asked.clear()
    assert files_of(data_copy(DATA)) == files_of(data)
    assert not set(first) & set(gets(faulty))


def test_what_comes_cut_or_changed_is_fetched_again_and_then_refused(data: Path, faulty: type[FaultyStore]) -> None:
    answers: list[object] = [CUT]
    faulty.rule.append(lambda what, path: answers.pop() if what == "get" and "train.bin" in path and answers else None)
    assert files_of(data_copy(DATA)) == files_of(data)
    faulty.rule[:] = []
    name = "/me:secret@bucket/stories/validation.bin"
    FaultyStore().pipe_file(name, bytes(len(faulty.store[name].getbuffer())))
    manifest = json.loads((data / "dataset.json").read_text())
    FaultyStore().pipe_file("/me:secret@bucket/stories/dataset.json", json.dumps(manifest).encode())
    faulty.asked.clear()
    with pytest.raises(DataError) as raised:
        data_copy(DATA)
    assert "faulty://bucket/stories/validation.bin: SHA-256 " in str(raised.value)
    assert "; copy the data folder there again" in str(raised.value)
    assert gets(faulty).count("validation.bin") == CONTENT_ATTEMPTS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda store: store.clear(),
            "faulty://bucket/stories: no dataset.json there; check the bucket and the folder",
        ),
        (lambda store: store.pop("/me:secret@bucket/stories/train.bin"), "stories/train.bin: is not there; copy the"),
        (
            lambda store: FaultyStore().pipe_file("/me:secret@bucket/stories/dataset.json", b"{}"),
            "faulty://bucket/stories/dataset.json: dtype: Field required",
        ),
        (
            lambda store: FaultyStore().pipe_file("/me:secret@bucket/stories/tokenizer.json", b"{}"),
            "faulty://bucket/stories/tokenizer.json: ",
        ),
        (
            lambda store: FaultyStore().pipe_file("/me:secret@bucket/stories/train.starts.npy", b"{}"),
            "faulty://bucket/stories/train.starts.npy: not a NumPy file",
        ),
    ],
    ids=["nothing", "a file less", "a manifest of nothing", "no tokenizer", "no starts"],
)
def test_what_is_no_data_folder_is_refused(
    change: Callable[[dict[str, object]], object], words: str, data: Path, faulty: type[FaultyStore], tmp_path: Path
) -> None:
    change(faulty.store)
    with pytest.raises(DataError) as raised:
        data_copy(DATA)
    assert words in str(raised.value)
    assert "secret" not in str(raised.value)
    assert not list((tmp_path / "cache" / "data").glob("stories*"))


def test_of_several_processes_one_fetches(data: Path, faulty: type[FaultyStore]) -> None:
    """Threads, which lock a file against each other as processes do: each opens it."""
    meet, found = threading.Barrier(3), list[Path]()

    def fetch() -> None:
        meet.wait()
        found.append(data_copy(DATA))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(gets(faulty)) == len(set(gets(faulty)))


def test_a_model_is_a_runs_best_or_the_checkpoint_that_is_named(run: RunFolder, faulty: type[FaultyStore]) -> None:
    best = model_copy(RUN)
    assert best.name == "step-00000001"
    verify(best)
    copy = RunFolder(best.parent.parent)
    assert copy.config() == run.config()
    assert copy.metrics() == run.metrics()
    assert copy.path.name == "first"
    named = model_copy(f"{RUN}/checkpoints/step-00000003/")
    assert files_of(named) == files_of(run.checkpoints_folder / "step-00000003")
    assert named.parent == best.parent
    faulty.asked.clear()
    assert model_copy(RUN) == best
    assert gets(faulty) == []
    FaultyStore().rm_file("/bucket/runs/first/checkpoints/best.json")
    assert model_copy(RUN) == named


def test_another_checkpoint_of_the_same_step_replaces_the_copy(
    run: RunFolder, make_state: MakeState, tiny: GPTConfig
) -> None:
    before = files_of(model_copy(f"{RUN}/checkpoints/step-00000003"))
    changed = make_state(3)
    changed.loop["tokens"] = 4
    RunCheckpoints(run, tiny, None, keep=2).save(changed)
    uploaded(run.path, "bucket/runs/first")
    after = files_of(model_copy(f"{RUN}/checkpoints/step-00000003"))
    assert after != before
    assert after == files_of(run.checkpoints_folder / "step-00000003")


def test_a_checkpoint_without_a_manifest_is_none(run: RunFolder, faulty: type[FaultyStore], tmp_path: Path) -> None:
    FaultyStore().rm_file("/bucket/runs/first/checkpoints/step-00000003/manifest.json")
    FaultyStore().rm_file("/bucket/runs/first/checkpoints/step-00000001/manifest.json")
    assert model_copy(RUN).name == "step-00000002"
    with pytest.raises(CheckpointError, match=r"neither a run .* nor a checkpoint"):
        model_copy(f"{RUN}/checkpoints/step-00000003")
    FaultyStore().rm_file("/bucket/runs/first/checkpoints/step-00000002/manifest.json")
    with pytest.raises(CheckpointError, match="faulty://bucket/runs/first has no usable checkpoint: it holds none"):
        model_copy(RUN)
    with pytest.raises(CheckpointError, match=r"neither a run .* nor a checkpoint"):
        model_copy("faulty://bucket/nowhere")


def test_a_run_to_go_on_with_has_its_newest_good_checkpoint_and_its_best(
    run: RunFolder, faulty: type[FaultyStore], tmp_path: Path
) -> None:
    out, said = tmp_path / "runs" / "first", list[str]()
    name = "/bucket/runs/first/checkpoints/step-00000003/model.safetensors"
    FaultyStore().pipe_file(name, bytes(len(faulty.store[name].getbuffer())))
    fetch_run(RUN, out, None, said.append)
    assert [path.name for path in RunFolder(out).checkpoints()] == ["step-00000001", "step-00000002"]
    assert newest_good(RunFolder(out))[0].name == "step-00000002"
    for name in ("config.toml", "metrics.jsonl", "checkpoints/best.json"):
        assert (out / name).read_bytes() == (run.path / name).read_bytes()
    (words,) = said
    assert "passed over a damaged checkpoint: faulty://bucket/runs/first/checkpoints/step-00000003/model.safe" in words
    assert [path.name for path in out.parent.iterdir()] == ["first"], "no lock, no draft"


def test_a_run_is_not_fetched_over_one_that_trains(run: RunFolder, faulty: type[FaultyStore], tmp_path: Path) -> None:
    """Two commands of the same words: the second one waited, and finds the first one's folder."""
    out, waits, said = tmp_path / "runs" / "first", threading.Event(), list[str]()
    errors = list[CheckpointError]()

    def told(done: int, total: int | None, what: str, details: str = "") -> None:
        said.append(what)
        waits.set()

    def second() -> None:
        try:
            fetch_run(RUN, out, told, pytest.fail)
        except CheckpointError as error:
            errors.append(error)

    thread = threading.Thread(target=second)

    def meanwhile(what: str, path: str) -> None:
        if what == "get" and not thread.ident:
            thread.start()
            assert waits.wait(20)

    faulty.rule.append(meanwhile)
    fetch_run(RUN, out, None, pytest.fail)
    (out / "trained").write_text("by the first")
    thread.join()
    assert said == [f"waiting for another process that fetches {out}"]
    assert [str(error) for error in errors] == [
        f"{out} is a run's by now: another process was faster.\n"
        f"When that has ended, `smallgpt train --resume {out}` goes on with it; or choose another folder with --out."
    ]
    assert (out / "trained").exists()
    assert [path.name for path in out.parent.iterdir()] == ["first"], "no lock, no draft"


def test_a_later_round_of_a_launch_goes_on_in_what_an_earlier_one_fetched(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    fetch_run(RUN, out, None, pytest.fail, "night")
    assert RunFolder(out).launch() == "night"
    (out / "trained").write_text("by the first")
    fetch_run(RUN, out, None, pytest.fail, "night")
    assert (out / "trained").exists()
    for launch in ("day", None):
        with pytest.raises(CheckpointError, match="is a run's by now"):
            fetch_run(RUN, out, None, pytest.fail, launch)
    fetch_run(RUN, tmp_path / "alone", None, pytest.fail)
    assert RunFolder(tmp_path / "alone").launch() == ""


def test_storage_without_locks_is_named(
    run: RunFolder, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    out, words = tmp_path / "runs" / "first", "No locks available; mount its storage with flock, or use another: "
    with pytest.raises(
        CheckpointError, match=f"^{out.parent}/.first.lock cannot be locked: {words}--out, SMALLGPT_CACHE"
    ):
        fetch_run(RUN, out, None, pytest.fail)
    with pytest.raises(DataError, match=f"cannot be locked: {words}"):
        data_copy(DATA)
    assert not out.exists()


def test_a_store_that_is_away_is_no_reason_to_go_back(
    run: RunFolder, faulty: type[FaultyStore], tmp_path: Path
) -> None:
    faulty.rule.append(fail_on("get", "step-00000003/model", ConnectionResetError("cut")))
    out = tmp_path / "runs" / "first"
    with pytest.raises(CheckpointError, match="again and again"):
        fetch_run(RUN, out, None, pytest.fail)
    assert not out.exists()
    faulty.rule.clear()
    faulty.asked.clear()
    fetch_run(RUN, out, None, pytest.fail)
    assert newest_good(RunFolder(out))[0].name == "step-00000003"
    assert ("get", "/bucket/runs/first/checkpoints/step-00000003/config.json") not in faulty.asked, "it was whole"


def test_names_in_a_manifest_stay_in_their_folder(run: RunFolder, faulty: type[FaultyStore], tmp_path: Path) -> None:
    name = "checkpoints/step-00000001/manifest.json"
    manifest = json.loads(stored("bucket/runs/first")[name])
    manifest["files"]["../../../escaped.json"] = manifest["files"]["config.json"]
    FaultyStore().pipe_file(f"/bucket/runs/first/{name}", json.dumps(manifest).encode())
    with pytest.raises(CheckpointError, match=r"escaped\.json: is not there"):
        model_copy(f"{RUN}/checkpoints/step-00000001")
    assert not list(tmp_path.rglob("escaped.json"))

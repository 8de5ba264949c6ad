"""A run folder copied to a store while it grows: equal, pruned alike, and never a half checkpoint to be read."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.checkpoints import RunCheckpoints, verify
from smallgpt.infrastructure.copies import fetch_run, model_copy
from smallgpt.infrastructure.mirror import Mirror
from smallgpt.infrastructure.retrying import ATTEMPTS
from smallgpt.infrastructure.run_folder import RunFolder
from tests.faulty_store import FaultyStore, fail_on, files_of, stored

URL = "faulty://bucket/runs/first"
MakeState = Callable[[int], TrainingState]
pytestmark = pytest.mark.usefixtures("faulty")


@pytest.fixture
def run(tmp_path: Path, tiny: GPTConfig) -> RunFolder:
    folder = RunFolder(tmp_path / "first")
    folder.write_config(RunConfig(model=tiny))
    return folder


class Saver:
    """Saves states as a run does, with an event for each, into a folder that is mirrored."""

    def __init__(self, run: RunFolder, tiny: GPTConfig, make_state: MakeState, keep: int = 2) -> None:
        self.said: list[str] = []
        self.run, self.make_state = run, make_state
        self.mirror = Mirror(run, URL, self.said.append)
        self.checkpoints = RunCheckpoints(run, tiny, None, keep, saved=self.mirror.start)

    def save(self, *steps: int) -> None:
        for step in steps:
            with self.run.metrics_file.open("a") as file:
                file.write(json.dumps({"event": "train", "step": step}) + "\n")
            self.checkpoints.save(self.make_state(step))

    def wait(self) -> None:
        """Until the thread has nothing to do."""
        thread = self.mirror._thread
        if thread is not None:
            thread.join()


@pytest.fixture
def saver(run: RunFolder, tiny: GPTConfig, make_state: MakeState) -> Saver:
    return Saver(run, tiny, make_state)


def names(root: str = "bucket/runs/first") -> set[str]:
    return {name.split("/")[1] for name in stored(root) if name.startswith("checkpoints/step-")}


def test_the_mirror_is_the_run_and_is_pruned_as_the_run_is(saver: Saver, run: RunFolder) -> None:
    saver.save(1)
    saver.checkpoints.mark_best(1)
    saver.wait()
    assert names() == {"step-00000001"}
    for step in (2, 3, 4):
        saver.save(step)
        saver.wait()
    saver.mirror.finish()
    assert names() == {"step-00000001", "step-00000003", "step-00000004"}
    assert stored("bucket/runs/first") == files_of(run.path)
    assert saver.said == []
    assert not list(run.checkpoints_folder.glob(".*")), "nothing staged is left"


def test_the_manifest_goes_last_and_what_a_checkpoint_needs_before_it(saver: Saver, faulty: type[FaultyStore]) -> None:
    saver.save(1)
    saver.mirror.finish()
    sent = [Path(path).name for what, path in faulty.asked if what in ("put", "write")]
    assert sent[:2] == ["config.toml", "metrics.jsonl"]
    assert sent[-1] == "manifest.json"


def test_an_old_checkpoint_goes_without_its_manifest_first(saver: Saver, faulty: type[FaultyStore]) -> None:
    saver.save(1, 2)
    saver.wait()
    saver.save(3)
    saver.mirror.finish()
    removed = [path for what, path in faulty.asked if what == "rm"]
    assert removed[0] == "/bucket/runs/first/checkpoints/step-00000001/manifest.json"


@pytest.mark.parametrize("file", range(6))
def test_an_upload_that_is_cut_off_leaves_nothing_to_be_read(
    file: int, saver: Saver, faulty: type[FaultyStore], tmp_path: Path
) -> None:
    """As after a kill: the thread ends at file number `file` of the second checkpoint, and nothing is cleaned up."""
    saver.save(1)
    saver.wait()
    before = stored("bucket/runs/first")
    left = [file]

    def cut(what: str, path: str) -> None:
        if what in ("put", "write") and "step-00000002" in path:
            if not left[0]:
                raise ConnectionAbortedError("the store is gone")
            left[0] -= 1

    faulty.rule.append(cut)
    saver.save(2)
    saver.wait()
    verify(model_copy(URL))
    fetch_run(URL, tmp_path / "again", None, pytest.fail)
    there = "step-00000002" if file == 5 else "step-00000001"
    assert model_copy(URL).name == there
    assert {name: content for name, content in stored("bucket/runs/first").items() if "step-00000001" in name} == {
        name: content for name, content in before.items() if "step-00000001" in name
    }


def test_a_store_that_is_away_for_a_while_costs_a_warning(
    saver: Saver, run: RunFolder, faulty: type[FaultyStore]
) -> None:
    faulty.rule.append(fail_on("put", "step-00000001/model", ConnectionResetError("cut"), ATTEMPTS))
    saver.save(1)
    saver.wait()
    (words,) = saver.said
    assert words.startswith(
        f"not mirrored yet: {URL}/checkpoints/step-00000001/model.safetensors: cut, again and again"
    )
    assert words.endswith("; the next checkpoint tries again")
    saver.save(2)
    saver.mirror.finish()
    assert stored("bucket/runs/first") == files_of(run.path)
    assert len(saver.said) == 1


def test_nothing_is_pruned_there_while_the_newest_is_not_there(saver: Saver, faulty: type[FaultyStore]) -> None:
    saver.save(1, 2)
    saver.wait()
    faulty.rule.append(fail_on("put", "step-00000003", PermissionError("Forbidden")))
    saver.save(3)
    saver.wait()
    assert names() >= {"step-00000001", "step-00000002"}
    assert model_copy(URL).name == "step-00000002"


def test_what_is_missing_at_the_end_is_an_error_with_a_remedy(
    saver: Saver, run: RunFolder, faulty: type[FaultyStore], tiny: GPTConfig, make_state: MakeState
) -> None:
    saver.save(1)
    saver.wait()
    faulty.rule.append(fail_on("put", "step-00000002/optimizer", PermissionError("Forbidden")))
    saver.save(2)
    saver.checkpoints.mark_best(2)
    with pytest.raises(CheckpointError) as raised:
        saver.mirror.finish()
    assert str(raised.value) == (
        f"step-00000002, checkpoints/best.json of {run.path} could not be copied: {URL}/checkpoints/step-00000002/"
        "optimizer.safetensors: access denied (Forbidden); check the credentials that this machine has, and their rights.\n"
        f"The run is whole in its folder; `smallgpt train --resume {run.path}` copies it when the store answers."
    )
    faulty.rule.clear()
    again = Saver(run, tiny, make_state)
    again.mirror.finish()
    assert stored("bucket/runs/first") == files_of(run.path)


def test_a_save_does_not_wait_for_a_slow_store(saver: Saver, run: RunFolder, faulty: type[FaultyStore]) -> None:
    """Saves go on, and are pruned, while the first upload hangs; it still ends whole."""
    hang, reached = threading.Event(), threading.Event()

    def slow(what: str, path: str) -> None:
        if what == "put" and "step-00000001/model" in path:
            reached.set()
            assert hang.wait(20)

    faulty.rule.append(slow)
    saver.save(1)
    assert reached.wait(20)
    saver.save(2, 3, 4)
    assert [path.name for path in run.checkpoints()] == ["step-00000003", "step-00000004"]
    hang.set()
    saver.mirror.finish()
    assert stored("bucket/runs/first") == files_of(run.path)
    sent = [path for what, path in faulty.asked if what == "write" and path.endswith("manifest.json")]
    assert "step-00000001" in sent[0], "its files stayed until it was there"
    assert saver.said == []


def test_the_store_is_never_without_a_checkpoint_though_an_upload_outlasts_several_saves(
    saver: Saver, run: RunFolder, faulty: type[FaultyStore]
) -> None:
    hang, reached, there = threading.Event(), threading.Event(), list[set[str]]()

    def slow(what: str, path: str) -> None:
        if what == "put" and "step-00000001/model" in path:
            reached.set()
            assert hang.wait(20)
        elif what == "put" and "step-00000001" not in path:
            there.append(
                {name for name in names() if f"checkpoints/{name}/manifest.json" in stored("bucket/runs/first")}
            )

    faulty.rule.append(slow)
    saver.save(1)
    saver.checkpoints.mark_best(1)
    assert reached.wait(20)
    saver.save(2)
    saver.checkpoints.mark_best(2)
    saver.save(3, 4, 5)
    hang.set()
    saver.wait()
    assert there
    assert all(there), there
    saver.mirror.finish()
    assert stored("bucket/runs/first") == files_of(run.path)


def test_the_best_is_named_in_the_store_when_it_is_there(
    saver: Saver, run: RunFolder, faulty: type[FaultyStore]
) -> None:
    """A best checkpoint that was saved during an upload follows with the next one; until then the one before is it."""
    marked = list[str]()

    def save_meanwhile(what: str, path: str) -> None:
        if what == "put" and "step-00000002/model" in path and not marked:
            marked.append(path)
            saver.save(3)
            saver.checkpoints.mark_best(3)

    saver.save(1)
    saver.checkpoints.mark_best(1)
    saver.mirror.finish()
    saver.mirror.start = lambda: None  # type: ignore[method-assign]  # looks are taken by hand
    saver.checkpoints.saved = saver.mirror.start
    faulty.rule.append(save_meanwhile)
    saver.save(2)
    saver.mirror._copy()
    assert names() == {"step-00000001", "step-00000002"}
    assert model_copy(URL).name == "step-00000001"
    assert json.loads(stored("bucket/runs/first")["metrics.jsonl"].splitlines()[-1])["step"] == 2
    saver.mirror.finish()
    assert model_copy(URL).name == "step-00000003"
    assert stored("bucket/runs/first") == files_of(run.path)


def test_a_run_that_went_on_elsewhere_is_not_overwritten(
    saver: Saver, run: RunFolder, tmp_path: Path, tiny: GPTConfig, make_state: MakeState
) -> None:
    saver.save(2, 4)
    saver.mirror.finish()
    fetch_run(URL, tmp_path / "elsewhere", None, pytest.fail)
    other = Saver(RunFolder(tmp_path / "elsewhere"), tiny, make_state)
    other.save(6, 8)
    other.mirror.finish()
    before = stored("bucket/runs/first")
    with pytest.raises(CheckpointError) as raised:
        Saver(run, tiny, make_state)
    assert str(raised.value) == (
        f"{URL} has step-00000008, and {run.path} nothing after step-00000004: the run went on elsewhere.\n"
        f"Go on from the store by `smallgpt train --resume {URL}`, or give another --checkpoint.mirror"
    )
    assert stored("bucket/runs/first") == before
    saver.save(5)
    saver.mirror.finish()
    assert names() == {"step-00000005", "step-00000006", "step-00000008"}, "from a process that had begun before"


@pytest.mark.parametrize("damage", ["no manifest", "other bytes"])
def test_a_later_checkpoint_that_is_none_does_not_stop_a_run_that_goes_on_before_it(
    damage: str, saver: Saver, tmp_path: Path, tiny: GPTConfig, make_state: MakeState, faulty: type[FaultyStore]
) -> None:
    saver.save(2, 4)
    saver.mirror.finish()
    last = "/bucket/runs/first/checkpoints/step-00000004"
    if damage == "no manifest":
        FaultyStore().rm_file(f"{last}/manifest.json")
    else:
        name = f"{last}/model.safetensors"
        FaultyStore().pipe_file(name, bytes(len(faulty.store[name].getbuffer())))
    said = list[str]()
    fetch_run(URL, tmp_path / "elsewhere", None, said.append)
    assert len(said) == (damage == "other bytes")
    other = Saver(RunFolder(tmp_path / "elsewhere"), tiny, make_state)
    other.save(3)
    other.mirror.finish()
    assert names() == {"step-00000002", "step-00000003", "step-00000004"}
    again = make_state(4)
    again.loop["seconds"] = 4.5
    other.checkpoints.save(again)
    other.save(5)
    other.mirror.finish()
    assert stored("bucket/runs/first") == files_of(tmp_path / "elsewhere")


@pytest.mark.parametrize("error", [RuntimeError("loop is closed at s3://me:secret@bucket"), ValueError()])
def test_what_no_one_expected_of_a_store_is_a_warning_too(
    error: Exception, saver: Saver, run: RunFolder, faulty: type[FaultyStore]
) -> None:
    faulty.rule.append(fail_on("put", "step-00000001/model", error, 1))
    saver.save(1)
    saver.wait()
    (words,) = saver.said
    assert words.startswith(f"not mirrored yet: {type(error).__name__}: ")
    assert "secret" not in words
    saver.save(2)
    saver.wait()
    assert stored("bucket/runs/first") == files_of(run.path)
    faulty.rule.append(fail_on("write", "config.toml", error))
    run.config_file.write_text("# changed")
    with pytest.raises(CheckpointError, match=f"config.toml of .* could not be copied: {type(error).__name__}: "):
        saver.mirror.finish()


def test_what_is_missing_is_named_though_the_store_cannot_be_asked(
    saver: Saver, run: RunFolder, faulty: type[FaultyStore]
) -> None:
    saver.mirror.start = lambda: None  # type: ignore[method-assign]
    saver.checkpoints.saved = saver.mirror.start
    saver.save(1)
    faulty.rule.append(fail_on("cat", "checkpoints", PermissionError("Forbidden")))
    with pytest.raises(CheckpointError, match=f"^step-00000001 of {run.path} could not be copied: .*access denied"):
        saver.mirror.finish()


@pytest.mark.parametrize("file", ["optimizer.safetensors", "manifest.json"])
def test_a_checkpoint_that_is_being_pruned_here_is_not_sent_in_part(file: str, saver: Saver, run: RunFolder) -> None:
    """As when some of its files are gone already while they are listed."""
    saver.mirror.start = lambda: None  # type: ignore[method-assign]
    saver.checkpoints.saved = saver.mirror.start
    saver.save(1, 2)
    (run.checkpoints_folder / "step-00000001" / file).unlink()
    saver.mirror.finish()
    assert names() == {"step-00000002"}
    if file != "manifest.json":
        words = f"not mirrored: step-00000001 of {run.path}, which lacks files, or has some that are cut"
        assert saver.said == [words]


def test_a_resumed_run_sends_what_is_not_there_yet(
    saver: Saver, run: RunFolder, faulty: type[FaultyStore], tiny: GPTConfig, make_state: MakeState
) -> None:
    saver.save(1, 2)
    saver.mirror.finish()
    faulty.asked.clear()
    again = Saver(run, tiny, make_state)
    again.save(3)
    again.mirror.finish()
    assert {Path(path).parent.name for what, path in faulty.asked if what == "put"} == {"step-00000003"}
    assert stored("bucket/runs/first") == files_of(run.path)


def test_another_run_is_not_overwritten(saver: Saver, tmp_path: Path, tiny: GPTConfig, make_state: MakeState) -> None:
    saver.save(1)
    saver.mirror.finish()
    before = stored("bucket/runs/first")
    with pytest.raises(CheckpointError) as raised:
        Saver(RunFolder(tmp_path / "second"), tiny, make_state)
    assert str(raised.value) == (
        f"{URL} holds another run; go on with that by `smallgpt train --resume {URL}`, or give another --checkpoint.mirror"
    )
    assert stored("bucket/runs/first") == before


def test_a_disk_without_links_gets_copies(saver: Saver, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    saver.save(1)
    saver.mirror.finish()
    assert stored("bucket/runs/first") == files_of(run.path)

"""Checkpoints under attack: killed processes, damaged files, full disks. There is always one that loads."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure import checkpoints
from smallgpt.infrastructure.checkpoints import RunCheckpoints, best_checkpoint, load_checkpoint, newest_good, verify
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces.opening import open_model

FILES = ["config.json", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def filled_state(step: int, size: int = 500) -> TrainingState:
    """Every number in it is its step, so that a mixture of two saves shows."""
    value = float(step)
    weights = {f"w{i}": torch.full((size,), value) for i in range(4)}
    return TrainingState(
        step, weights, {f"w{i}/exp_avg": torch.full((size,), value) for i in range(4)}, {"tokens": step}
    )


def assert_whole(state: TrainingState) -> None:
    tensors = [*state.weights.values(), *state.optimizer.values()]
    assert len(tensors) >= 8
    assert all((tensor == state.step).all() for tensor in tensors)
    assert state.loop == {"tokens": state.step}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with good checkpoints of steps 10 and 20, the first one the best."""
    run = RunFolder(tmp_path / "run")
    keeper = RunCheckpoints(run, GPTConfig(), None, keep=2)
    keeper.save(filled_state(10))
    keeper.mark_best(10)
    keeper.save(filled_state(20))
    return run


# --- processes that die while they save ---------------------------------------------------------------------------

SAVE_FOREVER = """
import itertools, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.background_checkpoints import BackgroundCheckpoints
from smallgpt.infrastructure.checkpoints import RunCheckpoints, newest_good
from smallgpt.infrastructure.run_folder import RunFolder

def save_forever(folder, keep, asynchronous):
    run = RunFolder(Path(folder))
    keeper = RunCheckpoints(run, GPTConfig(), None, keep)
    if asynchronous:
        keeper = BackgroundCheckpoints(keeper, lambda words: None)
    newest = int(newest_good(run)[0].name.removeprefix("step-"))
    weights = {f"w{i}": torch.empty(20_000) for i in range(4)}
    optimizer = {f"{name}/exp_avg": torch.empty(20_000) for name in weights}
    for step in itertools.count(newest + 1):
        for tensor in (*weights.values(), *optimizer.values()):
            tensor.fill_(step)
        keeper.save(TrainingState(step, weights, optimizer, {"tokens": step}))
        if step % 3 == 0:
            keeper.mark_best(step)

for line in sys.stdin:  # one child a line: importing torch anew for each would take seconds
    folder, keep, asynchronous = line.rstrip().split("\\t")
    child = os.fork()
    if child == 0:
        save_forever(folder, int(keep), asynchronous == "True")
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


Wait = Callable[[], None]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def killed_saver() -> Iterator[Callable[[Path, int, bool, Wait], None]]:
    """Let a process save into a run, wait, and kill it."""
    with subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        to, back = server.stdin, server.stdout

        def save_and_die(folder: Path, keep: int, asynchronous: bool, wait: Wait) -> None:
            to.write(f"{folder}\t{keep}\t{asynchronous}\n")
            to.flush()
            child = int(back.readline())
            wait()
            os.kill(child, signal.SIGKILL)
            assert back.readline() == "gone\n"

        yield save_and_die


@pytest.mark.parametrize(("keep", "asynchronous"), [(1, False), (2, False), (1, True)])
@pytest.mark.parametrize("kills", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_a_checkpoint_that_loads(
    tmp_path: Path, killed_saver: Callable[[Path, int, bool, Wait], None], kills: int, keep: int, asynchronous: bool
) -> None:
    run = RunFolder(tmp_path / "run")
    start = time.perf_counter()
    RunCheckpoints(run, GPTConfig(), None, keep).save(filled_state(1, 20_000))
    span = 3 * (time.perf_counter() - start)  # some die in their first save, some in a later one
    moments, last = random.Random(kills + keep), 2
    killed_saver(run.path, keep, asynchronous, lambda: until(lambda: run.checkpoints()[-1].name >= "step-00000002"))
    for _ in range(kills):
        killed_saver(run.path, keep, asynchronous, lambda: time.sleep(moments.uniform(0.0, span)))
        path, _ = newest_good(run)
        state = load_checkpoint(path)
        assert_whole(state)
        assert state.step >= last, "an older state came back"
        last = state.step
        drafts = list(run.checkpoints_folder.glob(".step-*.tmp"))
        assert len(drafts) <= 2, "a draft and what it replaces, of the last process; never those of all before it"


# --- files that are not what they were ----------------------------------------------------------------------------


def truncate(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep < 1 else -2])


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(bytes(content))


def swap(path: Path) -> None:
    """The file of another step: whole, and wrong."""
    shutil.copyfile(path.parent.parent / "step-00000010" / path.name, path)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: truncate(path, 0.0),
    "half": lambda path: truncate(path, 0.5),
    "two bytes short": lambda path: truncate(path, 1),
    "a byte long": lengthen,
    "first bit": lambda path: flip(path, 0),
    "last bit": lambda path: flip(path, 8 * path.stat().st_size - 1),
    "a folder": become_a_folder,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_named_and_passed_over(run: RunFolder, name: str, damage: Callable[[Path], None]) -> None:
    newest = run.checkpoints()[-1]
    damage(newest / name)
    with pytest.raises(CheckpointError, match="step-00000020") as caught:
        verify(newest)
    assert name in str(caught.value)
    path, problems = newest_good(run)
    assert path.name == "step-00000010"
    assert problems == [str(caught.value)]
    assert_whole(load_checkpoint(path))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_file_of_another_step_is_found_out(run: RunFolder, name: str) -> None:
    swap(run.checkpoints()[-1] / name)
    with pytest.raises(CheckpointError):
        verify(run.checkpoints()[-1])
    assert newest_good(run)[0].name == "step-00000010"


def test_no_single_flipped_bit_of_the_manifest_gets_through_or_breaks_out(run: RunFolder) -> None:
    newest = run.checkpoints()[-1]
    manifest = newest / "manifest.json"
    bits = 8 * manifest.stat().st_size
    unnoticed = []
    for bit in random.Random(1).sample(range(bits), 200):
        flip(manifest, bit)
        try:
            verify(newest)
            unnoticed.append(bit)
        except CheckpointError:
            pass
        flip(manifest, bit)
    verify(newest)
    assert unnoticed == []


def test_when_every_checkpoint_is_damaged_each_is_named(run: RunFolder) -> None:
    for path in run.checkpoints():
        flip(path / "model.safetensors", 999)
    with pytest.raises(CheckpointError, match=r"(?s)step-00000020.*damaged.*step-00000010.*damaged.*--out"):
        newest_good(run)


def test_a_damaged_model_is_not_opened_for_use_either(run: RunFolder) -> None:
    flip(run.checkpoints()[-1] / "model.safetensors", 9_999)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        open_model(run.checkpoints()[-1])


# --- disks that refuse --------------------------------------------------------------------------------------------

Fault = Callable[..., None]


def failing(code: int) -> Fault:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def at_call(number: int, fault: Fault, real: Callable[..., object]) -> Callable[..., object]:
    calls = [0]

    def sometimes(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == number:
            fault()
        return real(*args, **kwargs)

    return sometimes


PLACES: dict[str, tuple[object, str]] = {
    "making the draft": (Path, "mkdir"),
    "writing tensors": (checkpoints, "save_file"),
    "writing json": (Path, "write_text"),
    "replacing json": (Path, "replace"),
    "syncing": (os, "fsync"),
    "renaming": (Path, "rename"),
}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", [1, 2])
def test_a_refused_write_is_an_error_with_a_remedy_and_costs_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, code: int, place: str, call: int
) -> None:
    keeper = RunCheckpoints(run, GPTConfig(), None, keep=1)
    owner, name = PLACES[place]
    real = getattr(owner, name)
    refused = []

    def fail() -> None:
        refused.append(call)
        failing(code)()

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, at_call(call, fail, real))
        try:
            keeper.save(filled_state(30))
        except CheckpointError as error:
            assert os.strerror(code) in str(error)  # noqa: PT017
            assert "smallgpt train --resume" in str(error)  # noqa: PT017
        else:
            assert not refused, "the error was swallowed"
    if refused:
        assert [path.name for path in run.checkpoints()] == ["step-00000010", "step-00000020"]
        for path in run.checkpoints():
            assert_whole(load_checkpoint(path))
    keeper.save(filled_state(30))  # the disk has room again
    assert_whole(load_checkpoint(run.checkpoints()[-1]))
    assert not list(run.checkpoints_folder.glob(".step-*"))


def test_a_best_mark_that_cannot_be_written_leaves_the_old_one(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = RunCheckpoints(run, GPTConfig(), None, keep=2)
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(CheckpointError, match="No space left on device"):
        keeper.mark_best(20)
    best = best_checkpoint(run)
    assert best is not None
    assert best.name == "step-00000010"


def test_an_old_checkpoint_that_cannot_be_removed_stops_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = RunCheckpoints(run, GPTConfig(), None, keep=1)
    monkeypatch.setattr(os, "rmdir", failing(errno.EACCES))
    keeper.save(filled_state(30))
    assert newest_good(run)[0].name == "step-00000030"


def test_a_run_folder_removed_under_the_run_is_made_again(run: RunFolder) -> None:
    shutil.rmtree(run.path)
    RunCheckpoints(run, GPTConfig(), None, keep=1).save(filled_state(30))
    assert_whole(load_checkpoint(newest_good(run)[0]))


def test_a_run_reached_through_a_link_works(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run.path)
    linked = RunFolder(tmp_path / "link")
    RunCheckpoints(linked, GPTConfig(), None, keep=2).save(filled_state(30))
    assert_whole(load_checkpoint(newest_good(run)[0]))

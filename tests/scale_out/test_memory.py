"""The memory plan of one of several processes against what it takes, and the choice between replicas and shards by it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from smallgpt.application.memory_shares import Sharing
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces.cli import main
from smallgpt.interfaces.memory import USABLE, plan
from tests.interfaces.test_memory import machine, settings
from tests.scale_out.conftest import Launch

MEASURED, SHORT = (str(Path(__file__).with_name(name)) for name in ("measured.py", "short_of_memory.py"))
MODEL = {"n_embd": 128, "n_layer": 2, "n_head": 2, "block_size": 32, "vocab_size": 257, "dropout": 0.0}

pytestmark = pytest.mark.slow


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak and lets it count anew")
def test_the_plan_is_what_a_process_grows_by(launch: Launch, tmp_path: Path) -> None:
    done = launch(2, MEASURED, str(tmp_path), MALLOC_MMAP_THRESHOLD_="65536")
    assert done.code == 0, done.err
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        shares = {name: round(planned / grown, 2) for name, (planned, grown) in found.items()}
        assert shares == pytest.approx(dict.fromkeys(found, 1.0), abs=0.15)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ of bytes."""
    folder = tmp_path_factory.mktemp("memory")
    stories = [f"Once Mia had {n} hats and a dog, and {n % 7} kites." for n in range(200)]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as left:
            main(["prepare", "text", "stories.txt", "--tokenizer", "bytes", "--out", "data"])
    assert left.value.code == 0
    return folder


def events(data: Path, run: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in RunFolder(data / "runs" / run).metrics() if event["event"] == kind]


def test_auto_takes_shards_when_one_process_is_short_of_memory(launch: Launch, data: Path) -> None:
    config = settings(MODEL, batch_size=4, micro_batch="auto")
    replicas, shards = (
        plan(settings(MODEL, batch_size=4), machine(), sharing=Sharing(2, shards)).peak for shards in (False, True)
    )
    assert shards < 0.9 * replicas
    words = [f"--model.{name.replace('_', '-')}={value}" for name, value in config.model.model_dump().items()]
    words = [word for word in words if word.split("=")[0][8:].replace("-", "_") in MODEL]
    words += [
        "--training.batch-size=4",
        "--training.precision=fp32",
        "--training.micro-batch=auto",
        "--kernels.backend=torch",
    ]
    words += [
        "--training.max-steps=4",
        "--schedule.warmup=1",
        "--evaluation.sample-tokens=8",
        "--evaluation.max-tokens=2000",
    ]
    short = int((shards + replicas) / 2 / USABLE["cpu"])
    for run, left in (("ample", 10**10), ("short", short)):
        done = launch(
            2, SHORT, "train", "--data", "data", "--out", f"runs/{run}", *words,
            cwd=data, SHORT=json.dumps({"rank": 1, "bytes": left}),
        )  # fmt: skip
        assert done.code == 0, done.err
    ample, shared = (events(data, run, "start")[0]["reasons"]["parallel"] for run in ("ample", "short"))
    assert ample.startswith("ddp: replicas need ")
    assert shared.startswith("fsdp2: replicas need ")
    assert f"parallel: {shared}" in done.out
    losses = [[event["loss"] for event in events(data, run, "train")] for run in ("ample", "short")]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert events(data, "short", "sample"), "a sample needs the whole model"

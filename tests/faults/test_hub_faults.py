"""A hub that refuses, hurries away, lies or dawdles: each ends in the corpus all the same, or in a line with a remedy."""

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smallgpt.infrastructure import retrying
from smallgpt.infrastructure.corpora import hub_client
from smallgpt.infrastructure.manifest import read_manifest
from tests.loopback.hub import Hub, error, hub_of_this_process, parquet
from tests.loopback.server import Answer, Fault

Refused = Callable[..., None]
Run = Callable[..., Any]

STORIES: list[str | None] = [f"Story {i}. The cat sat.\nThen it ran." for i in range(60)]
PREPARE = ["prepare", "hub", "ann/stories", "--tokenizer", "bytes", "--out", "new"]
HTML = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
TRAIN = "/data/train-"
INFO, TREE, CARD = "/revision/main", "/tree/", "/README.md"


def hub_with(monkeypatch: pytest.MonkeyPatch, home: Path) -> Any:
    files = {
        "README.md": b"# Stories\n",
        "data/train-00000-of-00002.parquet": parquet(STORIES[:30]),
        "data/train-00001-of-00002.parquet": parquet(STORIES[30:]),
        "data/validation-00000-of-00001.parquet": parquet(["held out"]),
    }
    return hub_of_this_process(Hub("ann/stories", files), home, monkeypatch)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with hub_with(monkeypatch, tmp_path / "home") as running:
        yield running


def busy(status: int, wait: int | None = None) -> Answer:
    return Answer(status, b"later", {} if wait is None else {"Retry-After": str(wait)})


# --- what passes


@pytest.mark.parametrize(
    ("where", "streaming"),
    [(INFO, []), (TREE, []), (CARD, []), (f"{TRAIN}00000", []), (f"{TRAIN}00000", ["--streaming"])],
    ids=["commit", "list", "card", "data", "streamed data"],
)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("", 1, busy(429, 0)), "the hub asks to wait 0 s (429), attempt 2 of 5"),
        (Fault("", 2, busy(503)), "the hub fails (503), waiting 0 s, attempt 3 of 5"),
        (Fault("", 1, cut=60), ""),
    ],
    ids=["429", "503 twice", "cut"],
)
def test_a_passing_fault_changes_nothing(
    hub: Hub, run: Run, fault: Fault, where: str, said: str, streaming: list[str]
) -> None:
    hub.faults = [Fault(where, fault.times, fault.answer, cut=fault.cut)]
    ended = run(*PREPARE, *streaming)
    assert ended.code == 0, ended.err
    assert hub.faults[0].times == 0
    if not streaming:  # parts are read in processes of their own, without a voice
        assert said in ended.err
    assert "Error while downloading" not in ended.err
    manifest = read_manifest(Path("new"))
    assert manifest.revision == hub.commit
    assert [split.documents for split in manifest.splits.values()] == [60, 1]


def test_a_download_that_is_cut_goes_on_where_it_ended(
    hub: Hub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50)
    hub.faults = [Fault(f"GET /datasets/ann/stories/resolve/{hub.commit}{TRAIN}00001", 1, cut=100)]
    assert run(*PREPARE).code == 0
    (again,) = [request for request in hub.requests if request.endswith("bytes=100-")]
    assert "train-00001" in again
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_wrong_file_is_fetched_once_more(hub: Hub, run: Run) -> None:
    right = hub.files["data/train-00000-of-00002.parquet"]
    hub.faults = [Fault(f"GET /datasets/ann/stories/resolve/{hub.commit}{TRAIN}00000", 1, body=right[:-1] + b"?")]
    ended = run(*PREPARE)
    assert ended.code == 0
    assert "the hub fails (the checksum is not the hub's), waiting 0 s, attempt 2 of 5" in ended.err


# --- what does not


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ([Fault("/api/datasets", answer=error(404, "RepoNotFound"))], ["no such dataset on the hub", "check the name"]),
        (
            [Fault("/api/datasets", answer=error(401, "GatedRepo"))],
            ["gated; accept its terms at", "/datasets/ann/stories", "HF_TOKEN"],
        ),
        ([Fault("/api/datasets", answer=error(403, "GatedRepo"))], ["gated", "HF_TOKEN"]),
        ([Fault(TRAIN, answer=error(401, "GatedRepo"))], ["data/train-0000", "gated", "HF_TOKEN"]),
        ([Fault("/api/datasets", answer=Answer(401, b"no"))], ["HF_TOKEN"]),
        ([Fault("/api/datasets", answer=Answer(403, b"no"))], ["access denied (403)", "HF_TOKEN"]),
        ([Fault(TRAIN, answer=Answer(403, b"no"))], ["access denied (403)", "HF_TOKEN"]),
        ([Fault("/api/datasets", answer=Answer(418, b"no"))], ["answers 418"]),
        ([Fault(TRAIN, answer=error(404, "EntryNotFound"))], ["listed, but not there (404)", "HF_ENDPOINT"]),
        ([Fault("/api/datasets", answer=busy(429, 3600))], ["the hub answers 429, try again in 3600 s"]),
        ([Fault("/api/datasets", answer=busy(500))], ["the hub answers 500 ("]),
        ([Fault(TRAIN, answer=busy(502))], ["the hub answers 502 for data/train"]),
        ([Fault(TRAIN, answer=busy(429, 0))], ["the hub answers 429 for data/train"]),
        ([Fault(TRAIN, body=b"PAR1" * 99)], ["data/train-0000", "again and again", "HF_ENDPOINT"]),
        ([Fault(f"{TRAIN}00000", body=HTML)], ["data/train-00000"]),
        ([Fault("/api/datasets", answer=Answer(200, HTML))], ["not a hub's answer"]),
        ([Fault(CARD, answer=Answer(200, HTML))], ["not a hub's answer"]),
        ([Fault(TRAIN, answer=Answer(200, HTML))], ["not a hub's answer"]),
    ],
)
def test_what_does_not_pass_ends_in_a_line_with_a_remedy(
    hub: Hub, refused: Refused, faults: list[Fault], words: list[str]
) -> None:
    hub.faults = faults
    began = time.perf_counter()
    refused(PREPARE, 3, "ann/stories", *words, "`smallgpt prepare text FILES`", "`smallgpt prepare demo`")
    assert time.perf_counter() - began < 10


def test_a_checksum_that_stays_wrong(hub: Hub, refused: Refused, tmp_path: Path) -> None:
    right = hub.files["data/train-00000-of-00002.parquet"]
    hub.faults = [Fault(f"GET /datasets/ann/stories/resolve/{hub.commit}{TRAIN}00000", body=right[:-1] + b"?")]
    refused(PREPARE, 3, "data/train-00000", "the checksum is not the hub's", "another mirror in HF_ENDPOINT")
    assert not list((tmp_path / "home").rglob("train-00000*"))


def test_a_page_in_place_of_a_file_that_the_hub_vouches_for(hub: Hub, refused: Refused) -> None:
    hub.files["data/train-00000-of-00002.parquet"] = HTML
    refused(PREPARE, 3, "train-00000", "a web page, not a sound Parquet file", "--revision")


@pytest.mark.parametrize("where", ["/api/datasets", TRAIN])
def test_a_hub_that_falls_silent(hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    import huggingface_hub.constants

    for place, name in ((hub_client, "TIME_OUT"), (huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT")):
        monkeypatch.setattr(place, name, 0.05)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.faults = [Fault(where, silent=True)]
    refused(PREPARE, 3, "cannot be reached", "timed out", "`smallgpt prepare demo`")


def test_a_hub_that_trickles(hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "PATIENCE", 0.05)
    monkeypatch.setattr(retrying, "ATTEMPTS", 2)
    hub.faults = [Fault(f"GET /datasets/ann/stories/resolve/{hub.commit}{TRAIN}", seconds_a_byte=0.02)]
    refused(PREPARE, 3, "cannot be reached", "bytes a second for data/train", "`smallgpt prepare demo`")


def test_a_hub_that_goes_down_for_long_leaves_the_cache(hub: Hub, run: Run) -> None:
    assert run(*PREPARE).code == 0
    hub.faults = [Fault("/api/datasets", answer=busy(503))]
    ended = run(*PREPARE[:-1], "again")
    assert ended.code == 0
    assert f"using ann/stories at {hub.commit[:12]} in the cache" in ended.err
    assert Path("again/train.bin").read_bytes() == Path("new/train.bin").read_bytes()


def test_broken_text_inside_parquet(hub: Hub, refused: Refused) -> None:
    import io

    import pyarrow
    import pyarrow.parquet

    broken = pyarrow.array([b"fine", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), buffer)
    hub.files["data/train-00000-of-00002.parquet"] = buffer.getvalue()
    refused(PREPARE, 3, "train-00000")


def test_a_cache_on_a_full_disk(hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.file_download

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "blobs/x")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", full)
    refused(PREPARE, 3, "the cache cannot be written", "No space left on device", "free some space", "HF_HOME")


def test_a_cache_that_cannot_be_written(hub: Hub, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    refused(PREPARE, 3, "the cache cannot be written", "Not a directory", "HF_HOME")


def test_a_user_who_has_enough_stops_all_downloads(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallgpt.infrastructure.corpora import fetching

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "wait", interrupted)
    hub.faults = [Fault(f"GET /datasets/ann/stories/resolve/{hub.commit}{TRAIN}", seconds_a_byte=0.02)]
    began = time.perf_counter()
    assert run(*PREPARE).code == 130
    assert time.perf_counter() - began < 10
    assert not Path("new").exists()


@pytest.mark.slow
def test_a_killed_command_keeps_the_files_it_had_finished(hub: Hub, start: Callable[..., Any], tmp_path: Path) -> None:
    places = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    slow = Fault(f"GET /datasets/ann/stories/resolve/{hub.commit}{TRAIN}00001", seconds_a_byte=0.1)
    hub.faults = [slow]
    process = start(*PREPARE, **places)
    kept = tmp_path / "hf" / "hub" / "datasets--ann--stories" / "snapshots" / hub.commit / "data"
    deadline = time.monotonic() + 60
    while not (kept.is_dir() and len(list(kept.iterdir())) == 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert sorted(path.name[:11] for path in kept.iterdir()) == ["train-00000", "validation-"]
    assert not Path("new").exists()

    hub.faults, hub.requests = [], []
    process = start(*PREPARE, **places)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert [each for each in hub.requests if each.startswith("GET /datasets")] == [slow.where + "-of-00002.parquet"]
    assert read_manifest(Path("new")).splits["train"].documents == 60

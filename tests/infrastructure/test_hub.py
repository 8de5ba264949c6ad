"""A dataset on the hub, in its cache or in a folder as a corpus: by the real client, against a hub on this machine."""

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow
import pyarrow.parquet
import pytest

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.corpora.data_files import plainly_named, split_files
from smallgpt.infrastructure.corpora.hub import hub_corpus
from smallgpt.infrastructure.corpora.parts import Corpus, Documents, Part
from tests.loopback.hub import Hub, hub_of_this_process, parquet

SHARED_STORIES = Path(__file__).parents[3] / "shared" / "data" / "tinystories"
STORIES: list[str | None] = [f"Story {i}. The cat sat.\nThen it ran." for i in range(40)]
FILES = {
    "README.md": b"# Stories\n",
    "data/train-00000-of-00002.parquet": parquet(STORIES[:30]),
    "data/train-00001-of-00002.parquet": parquet([*STORIES[30:], None, " \n"]),
    "data/validation-00000-of-00001.parquet": parquet(["held out"]),
}


def texts(parts: Iterable[Part] | None) -> list[str]:
    return list(Documents(tuple(parts or ())))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_of_this_process(Hub("ann/stories", FILES), tmp_path / "home", monkeypatch) as running:
        yield running


def files_below(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


# --- on the hub


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_on_the_hub(hub: Hub, tmp_path: Path, streaming: bool, capfd: pytest.CaptureFixture[str]) -> None:
    corpus = hub_corpus("ann/stories", streaming=streaming)
    assert (corpus.name, corpus.revision) == ("ann/stories", hub.commit)
    assert texts(corpus.train) == texts(corpus.train) == STORIES
    assert texts(corpus.validation) == ["held out"]
    kept = files_below(tmp_path / "home" / "hub" / "datasets--ann--stories" / "snapshots")
    assert len(kept) == (1 if streaming else 4)
    assert not files_below(tmp_path / "home" / "datasets")
    assert capfd.readouterr() == ("", "")


def test_streamed_parts_know_their_size_and_survive_a_journey_to_another_process(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    corpus = hub_corpus("ann/stories", streaming=True)
    assert [part.size for part in corpus.train] == [len(FILES[path]) for path in sorted(FILES)[1:3]]
    assert corpus.train[0].name == "ann/stories, data/train-00000-of-00002.parquet"
    journey = pickle.dumps(corpus.train)
    assert len(journey) < 1000
    parts = pickle.loads(journey)
    assert parts == corpus.train
    first = parts[0].documents()
    assert next(first) == STORIES[0]
    (place,) = tmp_path.glob("smallgpt-*")
    assert files_below(place)
    assert [*first] == STORIES[1:30]
    assert not list(tmp_path.glob("smallgpt-*"))


def test_a_streamed_part_is_read_in_a_fresh_process_without_torch(hub: Hub, tmp_path: Path) -> None:
    part = hub_corpus("ann/stories", streaming=True).train[0]
    program = (
        "import pickle, sys; part = pickle.load(sys.stdin.buffer); "
        "print(sum(1 for _ in part.documents()), 'torch' in sys.modules, 'datasets' in sys.modules)"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "other"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(part), capture_output=True, env=environment
    )
    assert (done.stdout.decode(), done.stderr.decode()) == ("30 False False\n", "")


def test_what_was_fetched_before_is_not_fetched_again(hub: Hub) -> None:
    first = hub_corpus("ann/stories")
    hub.requests.clear()
    assert hub_corpus("ann/stories") == first
    assert not [request for request in hub.requests if "resolve" in request]
    assert texts(hub_corpus("ann/stories", streaming=True).train) == STORIES
    assert not [request for request in hub.requests if "resolve" in request]


def test_a_new_commit_is_seen_and_an_old_one_can_be_named(hub: Hub) -> None:
    old = hub_corpus("ann/stories")
    hub.files["data/train-00000-of-00002.parquet"] = parquet(["another"])
    new = hub_corpus("ann/stories")
    assert new.revision == hub.commit != old.revision
    assert texts(new.train)[0] == "another"
    assert texts(old.train) == STORIES
    with pytest.raises(DataError, match="no revision 'v9' on the hub; choose another --revision"):
        hub_corpus("ann/stories", revision="v9")


def test_progress_is_told_in_bytes(hub: Hub) -> None:
    told: list[tuple[int, int | None, str]] = []
    hub_corpus("ann/stories", progress=lambda *said: told.append(said))
    total = sum(len(body) for path, body in FILES.items() if path.endswith(".parquet"))
    assert told[-1] == (total, total, "bytes of ann/stories fetched")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_the_card_says_which_files_belong_together(hub: Hub) -> None:
    hub.files["README.md"] = (
        b"---\nconfigs:\n- config_name: plain\n  default: true\n  data_files: data/*.parquet\n"
        b"- config_name: odd\n  data_files:\n  - split: train\n    path: data/validation-*\n"
        b"  - split: dev\n    path: data/train-00001-*\n---\n# Stories\n"
    )
    corpus = hub_corpus("ann/stories", config="odd")
    assert (texts(corpus.train), texts(corpus.validation)) == (["held out"], STORIES[30:])
    corpus = hub_corpus("ann/stories")
    assert (len(texts(corpus.train)), corpus.validation) == (41, None)
    with pytest.raises(DataError, match=r"ann/stories: .*'even' not found.*'plain', 'odd'.*--config"):
        hub_corpus("ann/stories", config="even")
    hub.files["README.md"] = hub.files["README.md"].replace(b"default: true", b"default: false")
    with pytest.raises(DataError, match=r"ann/stories: Config name is missing.*'plain', 'odd'.*--config"):
        hub_corpus("ann/stories")


@pytest.mark.parametrize("path", ["/etc/hostname", "../../../../../../../../../../../../etc/hostname"])
def test_a_card_cannot_name_files_of_this_machine(hub: Hub, path: str) -> None:
    hub.files["README.md"] = f"---\nconfigs:\n- config_name: a\n  data_files: {path}\n---\n".encode()
    hub.files["data/train.txt"] = b"a text"
    with pytest.raises(DataError, match="ann/stories: "):
        hub_corpus("ann/stories")


def test_a_private_dataset_needs_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    with pytest.raises(DataError, match=r"no such dataset .*, or a private one: check the name, or set HF_TOKEN"):
        hub_corpus("ann/stories")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert texts(hub_corpus("ann/stories").train) == STORIES


def test_lines_and_compressed_files_are_read_like_local_ones(hub: Hub) -> None:
    import gzip

    hub.files = {
        "train.jsonl": b'{"story": "one"}\n{"story": "two"}\n',
        "test.jsonl.gz": gzip.compress(b'{"story": "three"}\n'),
    }
    corpus = hub_corpus("ann/stories", column="story")
    assert (texts(corpus.train), texts(corpus.validation)) == (["one", "two"], ["three"])
    with pytest.raises(DataError, match=r"no field 'text', only story; choose one with --column"):
        texts(hub_corpus("ann/stories").train)


@pytest.mark.parametrize("streaming", [False, True])
def test_other_formats_are_read_by_datasets(hub: Hub, streaming: bool) -> None:
    hub.files = {"train.csv": b"id,text\n1,one\n2,\n3,three\n", "test.csv": b"id,text\n1,tested\n"}
    corpus = hub_corpus("ann/stories", streaming=streaming)
    train = pickle.loads(pickle.dumps(corpus.train))
    assert (texts(train), texts(corpus.validation)) == (["one", "three"], ["tested"])
    assert (corpus.revision, [part.size for part in train]) == (hub.commit, [25])
    with pytest.raises(DataError, match=r"row 1: no column 'story', only id, text; choose one with --column"):
        texts(hub_corpus("ann/stories", column="story").train)
    with pytest.raises(DataError, match=r"row 1: column 'id' holds int, not text; choose another with --column"):
        texts(hub_corpus("ann/stories", column="id").train)


def test_archives_are_read_by_datasets(hub: Hub) -> None:
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        archive.writestr("stories.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    hub.files = {"train.zip": buffer.getvalue(), "test.zip": buffer.getvalue()}
    corpus = hub_corpus("ann/stories")
    assert (texts(corpus.train), texts(corpus.validation)) == (["one", "two"], ["one", "two"])
    hub.files = {"train.zip": b"PK not really"}
    with pytest.raises(DataError, match=r"archives cannot be read .*`smallgpt prepare text FILES`"):
        hub_corpus("ann/stories")


# --- in the cache


def test_without_the_hub_the_cache_is_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    fetched = hub_corpus("ann/stories")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    told: list[str] = []
    assert hub_corpus("ann/stories", progress=lambda _done, _of, what, _details="": told.append(what)) == fetched
    assert told[1] == f"the hub cannot be reached, using ann/stories at {hub.commit[:12]} in the cache"
    assert hub_corpus("ann/stories", revision=hub.commit) == fetched
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub_corpus("ann/stories") == fetched
    assert texts(hub_corpus("ann/stories", streaming=True).train) == STORIES


def test_a_cache_that_another_tool_filled_serves(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    home = tmp_path / "home" / "hub"
    huggingface_hub.snapshot_download("ann/stories", repo_type="dataset", endpoint=hub.address, cache_dir=home)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    corpus = hub_corpus("ann/stories")
    assert (texts(corpus.train), corpus.revision) == (STORIES, hub.commit)


def test_a_cache_with_some_of_the_files_is_not_taken_for_the_corpus(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    hub_corpus("ann/stories")
    (path,) = (tmp_path / "home").rglob("train-00001-*.parquet")
    path.unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"cannot be reached, and only 2 of 3 files are in the cache.*`smallgpt prepare demo`"
    ):
        hub_corpus("ann/stories")
    with pytest.raises(DataError, match=r"cannot be reached.*`smallgpt prepare demo`.*HF_HUB_OFFLINE.*HF_ENDPOINT"):
        hub_corpus("roneneldan/TinyStories")


def test_a_file_of_the_cache_that_was_cut_short_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub_corpus("ann/stories")
    (path,) = (tmp_path / "home").rglob("train-00001-*.parquet")
    path.resolve().write_bytes(b"PAR1")
    assert texts(hub_corpus("ann/stories").train) == STORIES


# --- in a folder


def write_parquet(path: Path, table: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(table), path)


def of_folder(folder: Path, **options: Any) -> Corpus:
    return hub_corpus(str(folder), **options)


def test_a_folder_in_hub_layout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", {"text": [*STORIES, None, " "]})
    write_parquet(tmp_path / "set" / "data" / "validation-00000-of-00001.parquet", {"text": ["held out"]})
    corpus = of_folder(tmp_path / "set")
    assert (corpus.name, corpus.revision) == ("set", None)
    assert texts(corpus.train) == texts(corpus.train) == STORIES
    assert texts(corpus.validation) == ["held out"]
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_real_stories_in_hub_layout() -> None:
    if not SHARED_STORIES.is_dir():
        pytest.skip("the stories are not in ../shared")
    corpus = of_folder(SHARED_STORIES)
    assert (len(texts(corpus.train)), len(texts(corpus.validation))) == (2817, 300)


def test_a_folder_in_another_format(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("text\none\ntwo\n")
    corpus = of_folder(tmp_path / "set")
    assert (texts(corpus.train), corpus.validation) == (["one", "two"], None)


def test_a_test_split_serves_and_splits_without_training_do_not(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "train.parquet", {"text": STORIES})
    assert of_folder(tmp_path / "set").validation is None
    write_parquet(tmp_path / "set" / "test.parquet", {"text": ["tested"]})
    assert texts(of_folder(tmp_path / "set").validation) == ["tested"]
    write_parquet(tmp_path / "other" / "test.parquet", {"text": ["tested"]})
    write_parquet(tmp_path / "other" / "validation.parquet", {"text": ["valid"]})
    with pytest.raises(DataError, match="no split called train, only"):
        of_folder(tmp_path / "other")


def test_columns_of_a_dataset(tmp_path: Path) -> None:
    nested = [{"title": "a", "body": "b"}] * 40
    write_parquet(tmp_path / "train.parquet", {"story": STORIES, "stars": list(range(40)), "page": nested})
    with pytest.raises(DataError, match=r"no column 'text', only story, stars, page; choose one with --column"):
        of_folder(tmp_path)
    with pytest.raises(DataError, match=r"column 'stars' holds int64, not text; choose another with --column"):
        of_folder(tmp_path, column="stars")
    with pytest.raises(DataError, match=r"column 'page' holds struct<.*>, not text"):
        of_folder(tmp_path, column="page")


def test_folders_that_hold_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset on the hub, and no folder"):
        of_folder(tmp_path / "nothing-here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no data files .*`smallgpt prepare text FILES`"):
        of_folder(tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"broken: train\.parquet is not a sound Parquet file"):
        of_folder(tmp_path / "broken")
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip" / "train.zip").write_bytes(b"PK not really")
    with pytest.raises(DataError, match=r"zip: a \.zip file in it is damaged"):
        of_folder(tmp_path / "zip")


def test_names_that_tell_all_are_read_as_datasets_reads_them(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "extra-00000-of-00001"):
        write_parquet(tmp_path / "data" / f"{name}.parquet", {"text": ["a story"]})
    assert plainly_named(tmp_path) == split_files(tmp_path, None, "set")
    (tmp_path / "README.md").write_text("# A card may say anything")
    assert plainly_named(tmp_path) == {}

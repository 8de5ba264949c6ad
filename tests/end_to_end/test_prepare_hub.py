"""`smallgpt prepare tinystories` as a user runs it, in a process of its own, from a hub on this machine."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallgpt.infrastructure.corpora.hub import hub_corpus
from smallgpt.infrastructure.manifest import read_manifest
from smallgpt.infrastructure.tokenizing.choosing import TokenizerChoice
from smallgpt.infrastructure.tokenizing.making import Options, make_data_folder
from tests.loopback.hub import Hub, parquet

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tinystories" / "data"
CARD = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: data/validation-*
---
# TinyStories
"""


def tinystories() -> dict[str, bytes]:
    """The dataset's files in small: real stories where they are at hand, else made ones."""
    files = {f"data/{path.name}": path.read_bytes() for path in SHARED.glob("*.parquet")}
    if not files:
        pick = random.Random(0).choice
        stories = [f"Once {pick(['Tom', 'Zoë'])} had a {pick(['kite', 'dog'])} and {n} hats." for n in range(800)]
        files = {f"data/train-0000{n}-of-00002.parquet": parquet(stories[n * 350 : (n + 1) * 350]) for n in range(2)}
        files["data/validation-00000-of-00001.parquet"] = parquet(stories[700:])
    return {"README.md": CARD, "all.tar.gz": b"another form of the same", **files}


@pytest.fixture
def hub() -> Iterator[Hub]:
    running = Hub("roneneldan/TinyStories", tinystories())
    with running.running():
        yield running


def smallgpt(hub: Hub, place: Path, *words: str) -> str:
    """What a command that ends well says on standard error."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-m", "smallgpt", *words],
        cwd=place,
        env={**environment, "HF_ENDPOINT": hub.address, "HF_HOME": str(place / "hf"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_tinystories_from_the_hub_is_the_same_as_from_a_folder(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name, body in tinystories().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    options = Options(TokenizerChoice("bpe", 400))
    expected = make_data_folder(hub_corpus(str(folder)), tmp_path / "expected", options)

    command = ["prepare", "tinystories", "--tokenizer", "bpe", "--vocab-size", "400"]
    said = smallgpt(hub, tmp_path, *command, "--out", "fetched")
    assert "bytes of roneneldan/TinyStories fetched" in said
    smallgpt(hub, tmp_path, *command, "--out", "streamed", "--streaming")

    for name in ("fetched", "streamed"):
        made = read_manifest(tmp_path / name)
        assert (made.source, made.revision) == ("roneneldan/TinyStories", hub.commit)
        assert made.model_dump(exclude={"source", "revision"}) == expected.model_dump(exclude={"source", "revision"})
        for file in sorted((tmp_path / "expected").iterdir()):
            if file.name != "dataset.json":
                assert (tmp_path / name / file.name).read_bytes() == file.read_bytes(), file.name

"""A model by its name, by the hub's real client, against a hub on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.infrastructure.formats import hub_models
from smallgpt.infrastructure.formats.hub_models import local_path
from smallgpt.infrastructure.formats.hugging_face import read
from tests.infrastructure.formats.folders import saved, stories_tokenizer, write_pair
from tests.loopback.hub import Hub, hub_of_this_process


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """A whole model of tmp_path/source, with much that nobody needs."""
    model = saved(tmp_path / "source")
    write_pair(stories_tokenizer(), tmp_path / "source")
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "README.md", "model.onnx"):
        (tmp_path / "source" / name).write_bytes(b"large, and not wanted")
    return model


@pytest.fixture
def hub(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    hub = Hub("ann/teller", files_of(tmp_path / "source"), "models")
    with hub_of_this_process(hub, tmp_path / "home", monkeypatch) as running:
        yield running


def test_a_name_becomes_a_folder_with_what_is_needed_and_no_more(hub: Hub, model: Any) -> None:
    told: list[str] = []
    folder = local_path("ann/teller", progress=lambda done, total, what, details="": told.append(what))
    wanted = ["config.json", "merges.txt", "model.safetensors", "vocab.json"]
    assert sorted(path.name for path in folder.iterdir()) == wanted
    assert "bytes of ann/teller fetched" in told
    idx = torch.arange(80)[None]
    with torch.inference_mode():
        torch.testing.assert_close(read(folder).model()(idx), model(idx).logits, rtol=1e-5, atol=2e-5)
    assert folder.name == hub.commit


def test_a_second_time_nothing_is_fetched_and_without_the_hub_the_cache_is_used(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = local_path("ann/teller")
    hub.requests.clear()
    assert local_path("ann/teller") == folder
    assert not [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    told: list[str] = []
    assert local_path("ann/teller", progress=lambda done, total, what, details="": told.append(what)) == folder
    assert told == [f"the hub cannot be reached, using ann/teller at {hub.commit[:12]} in the cache"]


def test_a_cache_with_a_part_of_it_is_not_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = local_path("ann/teller")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"the hub cannot be reached;\ngive a folder .*HF_HUB_OFFLINE=1"):
        local_path("ann/teller")


def test_weights_in_parts_and_pickles_where_there_is_nothing_else(hub: Hub, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    hub.files = files_of(tmp_path / "parts")
    folder = local_path("ann/teller")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert read(folder).weights.keys()

    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    hub.files = {
        "config.json": hub.files["config.json"],
        "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes(),
    }
    other = local_path("ann/teller")
    assert other != folder
    assert read(other).weights.keys()


def test_a_revision_is_a_commit_on_the_hub(hub: Hub) -> None:
    assert local_path("ann/teller", hub.commit).name == hub.commit
    with pytest.raises(CheckpointError, match="no revision 'v9' on the hub; choose another --revision"):
        local_path("ann/teller", "v9")


def test_names_without_an_owner_are_those_that_people_use(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def listing(name: str, *_: Any) -> Any:
        asked.append(name)
        raise CheckpointError("enough")

    monkeypatch.setattr(hub_models, "_listing", listing)
    for name in ("gpt2", "distilgpt2"):
        with pytest.raises(CheckpointError, match="enough"):
            local_path(name)
    assert asked == ["openai-community/gpt2", "distilbert/distilgpt2"]


def test_a_path_is_itself_and_has_no_revision(tmp_path: Path) -> None:
    assert local_path(str(tmp_path)) == tmp_path
    with pytest.raises(ConfigError, match=r"--revision v1 is for a model on the hub"):
        local_path(str(tmp_path), "v1")


@pytest.mark.parametrize(
    "name", ["nothing", "./runs/x", "/no/such", "~/model", "models/ckpt.pt", "a/b/c", "../no-such", ""]
)
def test_what_is_neither_path_nor_name_asks_nobody(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_models, "_listing", None)
    if name == "":
        assert local_path(name) == Path()
        return
    with pytest.raises(CheckpointError, match="is not there; give a path, or OWNER/NAME"):
        local_path(name)

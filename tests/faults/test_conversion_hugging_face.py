"""Folders of Hugging Face that are damaged, hostile or of another model: each is named and refused, and leaves nothing."""

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from smallgpt.infrastructure import retrying
from smallgpt.infrastructure.corpora import hub_client
from tests.infrastructure.formats.folders import change, saved, stories_tokenizer
from tests.loopback.hub import Hub, error, hub_of_this_process
from tests.loopback.server import Answer, Fault

Refused = Callable[..., None]
Run = Callable[..., Any]
IMPORT = ["import", "model", "--out", "new"]
CONFIG, WEIGHTS = Path("model/config.json"), Path("model/model.safetensors")
INDEX = Path("model/model.safetensors.index.json")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A sound model in the folder `model`."""
    monkeypatch.chdir(tmp_path)
    made = saved(Path("model"))
    stories_tokenizer().save(Path("model/tokenizer.json"))
    return made


def with_tensors(**changes: torch.Tensor | None) -> None:
    """Tensors put in or, when None, taken out."""
    tensors = load_file(WEIGHTS) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, WEIGHTS, {"format": "pt"})


# --- other models


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "a Llama checkpoint (model_type 'llama')"),
        ({"model_type": "gpt_neox"}, "model_type 'gpt_neox'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"n_inner": 50}, "n_inner is 50"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized (gptq)"),
        ({"n_head": 5}, "n_embd (24) must be a multiple of n_head (5)"),
        ({"n_layer": "many"}, "n_layer"),
        ({"resid_pdrop": 1.5}, "dropout"),
    ],
    ids=str,
)
def test_a_configuration_of_another_model(model: Any, refused: Refused, values: dict[str, Any], words: str) -> None:
    change(CONFIG, **values)
    refused(IMPORT, 4, "model/config.json", words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"vocab_size": 400}, "transformer.wte.weight has shape 320 x 24, but its configuration says 400 x 24"),
        ({"n_positions": 81}, "transformer.wpe.weight has shape 80 x 24, but its configuration says 81 x 24"),
        ({"n_layer": 3}, "transformer.h.2.attn.c_attn.bias, transformer.h.2.attn.c_attn.weight"),
        ({"n_layer": 1}, "unknown to a GPT-2"),
        ({"n_embd": 48}, "configuration says 320 x 48"),
    ],
    ids=str,
)
def test_weights_of_other_sizes(model: Any, refused: Refused, values: dict[str, Any], words: str) -> None:
    change(CONFIG, **values)
    refused(IMPORT, 4, "model/model.safetensors", words)


def test_a_matrix_the_wrong_way_round_is_named_as_the_file_has_it(model: Any, refused: Refused) -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    with_tensors(**{name: load_file(WEIGHTS)[name].t().contiguous()})
    refused(IMPORT, 4, f"{name} has shape 96 x 24, but its configuration says 24 x 96")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("transformer.h.1.ln_1.bias", None, "transformer.h.1.ln_1.bias is missing"),
        ("score.weight", torch.ones(2, 24), "score.weight is unknown to a GPT-2"),
        ("transformer.wpe.weight", torch.ones(80, 24, dtype=torch.int8), "holds torch.int8"),
        ("transformer.wpe.weight", torch.ones(80, 24).to(torch.float8_e4m3fn), "before it was quantized"),
        ("transformer.wpe.weight", torch.full((80, 24), torch.nan), "not finite"),
        ("lm_head.weight", torch.ones(320, 24), "output head is a matrix of its own"),
    ],
    ids=["missing", "surplus", "integers", "eight bits", "nan", "untied"],
)
def test_tensors_that_are_not_a_gpt2s(
    model: Any, refused: Refused, name: str, tensor: torch.Tensor | None, words: str
) -> None:
    with_tensors(**{name: tensor})
    refused(IMPORT, 4, "model/model.safetensors", words)


def test_a_tokenizer_with_more_ids_than_the_model(model: Any, refused: Refused) -> None:
    from smallgpt.infrastructure.tokenizers import Tokenizer, byte_tokenizer

    rules = byte_tokenizer().rules
    more = {f"<|{number}|>": number for number in range(256, 330)}
    Tokenizer(rules.vocabulary, [], more).save(Path("model/tokenizer.json"))
    refused(IMPORT, 4, "its tokenizer has 330 ids, the model 320")


# --- damaged


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_weights_that_are_cut_short(model: Any, refused: Refused, kept: int) -> None:
    WEIGHTS.write_bytes(WEIGHTS.read_bytes()[:kept])
    refused(IMPORT, 4, "model/model.safetensors cannot be read", "fetch or copy it again")


def test_a_header_with_a_wrong_bit_never_gives_another_model(model: Any, run: Run) -> None:
    sound = WEIGHTS.read_bytes()
    size = 8 + int.from_bytes(sound[:8], "little")
    for at in range(0, size, 37):
        WEIGHTS.write_bytes(sound[:at] + bytes([sound[at] ^ 4]) + sound[at + 1 :])
        ended = run(*IMPORT)
        assert ended.code in (0, 4), ended.err
        if ended.code == 4:
            ended.refused(4, "model/model.safetensors")
            assert not Path("new").exists()
        else:  # a bit of what nobody reads, such as the metadata
            assert load_file(WEIGHTS).keys() == model.state_dict().keys() - {"lm_head.weight"}
            assert run(*IMPORT, "--overwrite").code == 0
            break


@pytest.mark.parametrize("content", [b"", b'{"model_type": "gpt2", "n_emb', b'["model_type"]'])
def test_a_configuration_that_is_cut_short(model: Any, refused: Refused, content: bytes) -> None:
    CONFIG.write_bytes(content)
    refused(IMPORT, 4, "model")


def test_a_damaged_tokenizer(model: Any, refused: Refused) -> None:
    path = Path("model/tokenizer.json")
    path.write_bytes(path.read_bytes()[:-200])
    for command in (IMPORT, ["generate", "model"]):  # as for a tokenizer.json of our own
        refused(command, 3, "model/tokenizer.json", "fetch or copy it again, or remove it to go without")


def test_no_weights_at_all(model: Any, refused: Refused) -> None:
    WEIGHTS.rename("model/tf_model.h5")
    refused(IMPORT, 4, "model has no weights: none of model.safetensors")


# --- hostile


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "..", "a/../../b.safetensors", "..\\b", "", 7, None], ids=str
)
def test_parts_that_lead_out_of_the_folder(model: Any, refused: Refused, shard: Any) -> None:
    WEIGHTS.rename("model.safetensors")
    INDEX.write_text(json.dumps({"weight_map": {"transformer.wte.weight": shard}}))
    refused(IMPORT, 4, "index.json", f"{shard!r}", "no file beside it")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', "[]", "{"])
def test_an_index_without_its_map(model: Any, refused: Refused, content: str) -> None:
    WEIGHTS.unlink()
    INDEX.write_text(content)
    refused(IMPORT, 4, "model.safetensors.index.json")


def test_a_part_that_is_missing(model: Any, refused: Refused) -> None:
    model.save_pretrained("model", max_shard_size="20KB")
    WEIGHTS.unlink()
    (part,) = Path("model").glob("model-00002-of-*")
    part.unlink()
    refused(IMPORT, 4, f"{part} is missing", "index.json says")


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it ran",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code(model: Any, refused: Refused, legacy: bool) -> None:
    WEIGHTS.unlink()
    tensors = model.state_dict() | {"payload": Payload()}
    torch.save(tensors, "model/pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    refused(IMPORT, 4, "model/pytorch_model.bin cannot be read")
    assert not Path("it ran").exists()
    Path("model/pytorch_model.bin").write_bytes(pickle.dumps(Payload(), protocol=2))
    refused(IMPORT, 4, "model/pytorch_model.bin cannot be read")
    assert not Path("it ran").exists()


def test_code_of_the_folders_own_is_never_run(model: Any, run: Run) -> None:
    Path("model/modeling_own.py").write_text("import os\nos.mkdir('it ran')\n")
    change(CONFIG, auto_map={"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "modeling_own.Own"})
    assert run(*IMPORT).code == 0
    assert not Path("it ran").exists()


# --- the hub


@pytest.fixture
def hub(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub("ann/teller", {path.name: path.read_bytes() for path in Path("model").iterdir()}, "models")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with hub_of_this_process(hub, tmp_path / "home", monkeypatch) as running:
        yield running


FETCH = ["import", "ann/teller", "--out", "new"]


def test_from_the_hub(hub: Hub, run: Run) -> None:
    ended = run(*FETCH)
    assert ended.code == 0, ended.err
    assert "64 of 64 tokens are equal" in ended.out
    assert Path("new/model.safetensors").exists()


def test_no_network(hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    words = ("ann/teller is no path here", "the hub cannot be reached", "HF_HUB_OFFLINE=1", "HF_ENDPOINT")
    refused(FETCH, 4, *words)


def test_offline_by_wish(hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(FETCH, 4, "the hub cannot be reached", "give a folder of this machine")
    assert not hub.requests


def test_a_name_that_nobody_has(hub: Hub, refused: Refused) -> None:
    refused(["import", "ann/typo", "--out", "new"], 4, "ann/typo: no such model on the hub", "HF_TOKEN")


def test_a_private_model(hub: Hub, refused: Refused) -> None:
    hub.token = "secret"
    refused(FETCH, 4, "no such model on the hub", "private", "HF_TOKEN")


def test_a_gated_model(hub: Hub, refused: Refused) -> None:
    hub.faults = [Fault("/api/models", answer=error(403, "GatedRepo"))]
    refused(FETCH, 4, f"gated; accept its terms at {hub.address}/ann/teller", "HF_TOKEN")


def test_a_llama_is_refused_before_its_weights_come(hub: Hub, refused: Refused) -> None:
    hub.files["config.json"] = b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
    refused(FETCH, 4, "ann/teller, config.json", "a Llama checkpoint")
    assert not [request for request in hub.requests if "safetensors" in request]


def test_a_repository_without_a_model(hub: Hub, refused: Refused) -> None:
    del hub.files["config.json"]
    refused(FETCH, 4, "ann/teller has no config.json")


def test_a_part_that_the_hub_does_not_have(hub: Hub, refused: Refused) -> None:
    del hub.files["model.safetensors"]
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode()
    refused(FETCH, 4, "ann/teller has no model-1.safetensors")


def test_a_hub_that_is_down(hub: Hub, refused: Refused) -> None:
    hub.faults = [Fault("model.safetensors", answer=Answer(503, b"later"))]
    refused(FETCH, 4, "503 for model.safetensors", "HF_ENDPOINT")


def test_a_hub_that_trickles(hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "PATIENCE", 0.05)
    monkeypatch.setattr(retrying, "ATTEMPTS", 2)
    hub.faults = [Fault("model.safetensors", seconds_a_byte=0.02)]
    refused(FETCH, 4, "bytes a second for model.safetensors", "HF_ENDPOINT")


def test_weights_that_change_on_their_way(hub: Hub, refused: Refused) -> None:
    hub.faults = [Fault("GET /ann/teller/resolve/" + hub.commit + "/model.safetensors", body=bytes(70_000))]
    refused(FETCH, 4, "ann/teller, model.safetensors", "HF_ENDPOINT")


def test_a_revision_of_a_path(model: Any, refused: Refused) -> None:
    refused([*IMPORT, "--revision", "v1"], 2, "--revision v1 is for a model on the hub")

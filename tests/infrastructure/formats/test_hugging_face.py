"""GPT-2 folders of Hugging Face read as they are meant, and ours written so that its libraries load them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smallgpt.domain.config import Activation, GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.formats.hugging_face import read, reader, recognises, write
from smallgpt.infrastructure.formats.hugging_face_config import read_config
from smallgpt.infrastructure.formats.hugging_face_tokenizer import read_tokenizer
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.infrastructure.tokenizers import Tokenizer, byte_tokenizer
from tests.infrastructure.formats.folders import as_openai, change, saved, stories_tokenizer, write_pair

IDX = torch.arange(160).view(2, 80) % 320


def agree(folder: Path, model: Any) -> PortableModel:
    """What is read, once its logits are the other model's."""
    found = read(folder)
    with torch.inference_mode():
        torch.testing.assert_close(found.model()(IDX), model(IDX).logits, rtol=1e-5, atol=2e-5)
    return found


# --- in


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu_fast", "gelu_tanh")],
)
def test_a_saved_model_is_read_with_its_activation(tmp_path: Path, theirs: str, ours: Activation) -> None:
    model = saved(tmp_path, activation_function=theirs)
    assert recognises(tmp_path)
    found = agree(tmp_path, model)
    assert found.config == GPTConfig(
        block_size=80, vocab_size=320, n_layer=2, n_head=3, n_embd=24, dropout=0.1, activation=ours
    )
    assert reader(tmp_path).words.startswith("transformers ")
    torch.testing.assert_close(reader(tmp_path).logits(IDX), model(IDX).logits.detach())


def test_a_folder_as_openai_has_it(tmp_path: Path) -> None:
    model = as_openai(tmp_path)
    write_pair(stories_tokenizer(), tmp_path)
    found = agree(tmp_path, model)
    assert found.tokenizer is not None
    assert found.tokenizer.fingerprint == stories_tokenizer().fingerprint
    assert found.notes == ("the tokenizer has 296 of the model's 320 ids; the others are padding",)
    torch.testing.assert_close(reader(tmp_path).logits(IDX), model(IDX).logits.detach())


def test_gpt2s_own_files_are_gpt2s_tokenizer(tmp_path: Path, gpt2: Tokenizer) -> None:
    write_pair(gpt2, tmp_path)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    assert (len(ids), ids["<|endoftext|>"]) == (50257, 50256)
    found, notes = read_tokenizer(tmp_path, 50257)
    assert found is not None
    assert (found.name, notes) == ("gpt2", ())


def test_an_output_head_that_is_the_embedding_may_be_there(tmp_path: Path) -> None:
    model = saved(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert "lm_head.weight" in model.state_dict()
    agree(tmp_path, model)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_in_several_files(tmp_path: Path, kind: str) -> None:
    model = saved(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors").unlink()
    index = tmp_path / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values())
    assert len(files) > 2
    if kind == "bin":
        places = json.loads(index.read_text())["weight_map"]
        for name in files:
            torch.save(load_file(tmp_path / name), tmp_path / f"{name}.bin")
            (tmp_path / name).unlink()
        index.unlink()
        values = {"weight_map": {tensor: f"{name}.bin" for tensor, name in places.items()}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(values))
    agree(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_with_a_word(tmp_path: Path, dtype: torch.dtype) -> None:
    model = saved(tmp_path).to(dtype)
    model.save_pretrained(tmp_path)
    found = agree(tmp_path, model.float())
    assert {tensor.dtype for tensor in found.weights.values()} == {torch.float32}
    assert f"weights were {str(dtype).removeprefix('torch.')}, and are float32 now" in found.notes
    torch.testing.assert_close(reader(tmp_path).logits(IDX), model(IDX).logits.detach())


def test_safetensors_go_before_pickles_with_a_word(tmp_path: Path) -> None:
    model = saved(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    found = agree(tmp_path, model)
    assert "weights were taken from model.safetensors; pytorch_model.bin was not opened" in found.notes


def test_dropouts_that_differ_become_one_with_a_word(tmp_path: Path) -> None:
    saved(tmp_path, resid_pdrop=0.2, embd_pdrop=0.0)
    found = read(tmp_path)
    assert found.config.dropout == 0.2
    words = "dropout was 0.2 for residual branches, 0 for embeddings, 0.1 for attention; it is 0.2 for all of them now"
    assert words in found.notes


def test_a_tokenizer_of_another_kind_is_left_out_with_a_word(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Theirs
    from tokenizers.models import WordPiece

    saved(tmp_path)
    Theirs(WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    found = read(tmp_path)
    assert found.tokenizer is None
    assert "left out" in found.notes[-1]
    assert "WordPiece" in found.notes[-1]


def test_an_older_tokenizer_json_does_not_say_that_it_is_a_bpe(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    stories_tokenizer().save(file)
    document = json.loads(file.read_text())
    del document["model"]["type"]
    file.write_text(json.dumps(document))
    found, _ = read_tokenizer(tmp_path, 320)
    assert found is not None
    assert found.fingerprint == stories_tokenizer().fingerprint


def test_sizes_that_are_not_given_are_those_that_transformers_takes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_ctx": 64}')
    with pytest.raises(CheckpointError, match="no weights"):
        read(tmp_path)
    found, _ = read_config({"model_type": "gpt2", "n_ctx": 64}, "here")
    assert found == GPTConfig(
        block_size=64, vocab_size=50257, n_layer=12, n_head=12, n_embd=768, dropout=0.1, activation="gelu_tanh"
    )


def test_without_transformers_the_formulas_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = as_openai(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert reader(tmp_path).words.startswith("the formulas")
    torch.testing.assert_close(reader(tmp_path).logits(IDX), model(IDX).logits.detach(), rtol=1e-5, atol=2e-5)


def test_an_own_folder_and_no_folder_are_none_of_transformers(tmp_path: Path, tiny: GPTConfig) -> None:
    assert not recognises(tmp_path)
    (tmp_path / "config.json").write_text(tiny.model_dump_json())
    assert not recognises(tmp_path)


# --- out


def written(folder: Path, config: GPTConfig, tokenizer: Tokenizer | None) -> PortableModel:
    torch.manual_seed(0)
    weights = {name: parameter.detach() for name, parameter in GPT(config).named_parameters()}
    figures = {"bits per byte": "1.2345", "data": "letters.txt"}
    model = PortableModel(config, weights, tokenizer, name="mine", figures=figures)
    folder.mkdir(exist_ok=True)
    write(model, folder)
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_a_round_trip_changes_nothing(tmp_path: Path, tiny: GPTConfig, bias: bool, activation: Activation) -> None:
    config = tiny.model_copy(update={"bias": bias, "activation": activation, "vocab_size": 400, "dropout": 0.3})
    before = written(tmp_path, config, stories_tokenizer())
    after = read(tmp_path)
    assert after.config == config
    assert all(torch.equal(after.weights[name], tensor) for name, tensor in before.weights.items())
    assert after.weights.keys() == before.weights.keys()
    assert after.tokenizer is not None
    assert after.tokenizer.fingerprint == stories_tokenizer().fingerprint


def test_biases_that_were_trained_elsewhere_stay(tmp_path: Path, tiny: GPTConfig) -> None:
    from transformers import GPT2LMHeadModel

    written(tmp_path, tiny.model_copy(update={"bias": False}), None)
    model = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert model.config.smallgpt == {"bias": False}
    with torch.no_grad():
        model.transformer.h[1].ln_1.bias[0] = 0.5
    model.save_pretrained(tmp_path)
    found = read(tmp_path)
    assert found.config.bias
    assert found.weights["transformer.h.1.ln1.bias"][0] == 0.5


def test_the_names_are_those_that_transformers_saves(tmp_path: Path, tiny: GPTConfig) -> None:
    from transformers import GPT2LMHeadModel

    written(tmp_path / "ours", tiny, None)
    GPT2LMHeadModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


LOADING = """
import sys, warnings
warnings.simplefilter("error")
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder = sys.argv[1]
model, missing = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
assert not any(missing.values()), missing
tokenizer = AutoTokenizer.from_pretrained(folder)
text = "Once upon a time, a dog said hello — café 🙂\\n\\n it's 1234."
ids = tokenizer(text)["input_ids"]
assert tokenizer.decode(ids) == text
assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (int(sys.argv[2]), 64), tokenizer
told = pipeline("text-generation", model=folder, device="cpu")("Once upon", max_new_tokens=40)
assert told[0]["generated_text"].startswith("Once upon")
print(ids)
"""


TOKENIZERS = pytest.mark.parametrize("tokenizer", [byte_tokenizer(), stories_tokenizer()], ids=["bytes", "bpe"])


@TOKENIZERS
def test_text_gets_the_same_ids_and_comes_back(tmp_path: Path, tiny: GPTConfig, tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    written(tmp_path, tiny.model_copy(update={"vocab_size": 384, "block_size": 64}), tokenizer)
    model, theirs = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.model_max_length) == (tokenizer.end_of_text, 64)
    for text in ("Once upon a time , it 's", " café 🙂\n\n 1234", "They'll  say: 'no' .", ""):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    torch.manual_seed(0)
    ids = model.generate(**theirs(["a"] * 20, return_tensors="pt"), max_new_tokens=20)
    assert int(ids.max()) < tokenizer.vocab_size, "padding was chosen"


@pytest.mark.slow
@TOKENIZERS
def test_the_libraries_load_it_without_a_word(tmp_path: Path, tiny: GPTConfig, tokenizer: Tokenizer) -> None:
    config = tiny.model_copy(update={"vocab_size": 384, "block_size": 64})
    written(tmp_path, config, tokenizer)
    command = [sys.executable, "-c", LOADING, str(tmp_path), str(tokenizer.end_of_text)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.strip() and "it/s" not in line]
    assert not said, done.stderr
    assert json.loads(done.stdout) == tokenizer.encode("Once upon a time, a dog said hello — café 🙂\n\n it's 1234.")


def test_padding_is_suppressed_and_text_chosen_as_here(tmp_path: Path, tiny: GPTConfig) -> None:
    tokenizer = byte_tokenizer()
    written(tmp_path, tiny.model_copy(update={"vocab_size": 260}), tokenizer)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings["suppress_tokens"] == [257, 258, 259]
    assert [settings[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [256] * 3
    assert (settings["do_sample"], settings["temperature"], settings["top_k"]) == (True, 0.8, 0)


def test_a_model_without_tokenizer_says_so(tmp_path: Path, tiny: GPTConfig) -> None:
    weights = {name: parameter.detach() for name, parameter in GPT(tiny).named_parameters()}
    (note,) = write(PortableModel(tiny, weights), tmp_path)
    assert "no tokenizer" in note
    assert not list(tmp_path.glob("tokenizer*"))
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] is None
    change(tmp_path / "config.json", vocab_size=61)
    assert "no tokenizer" in read(tmp_path).notes[0]


def test_the_card_has_the_hubs_front_matter_and_the_runs_figures(tmp_path: Path, tiny: GPTConfig) -> None:
    from huggingface_hub import ModelCard

    written(tmp_path, tiny.model_copy(update={"vocab_size": 384}), byte_tokenizer())
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert "| bits per byte | 1.2345 |" in card.content
    assert "| data | letters.txt |" in card.content
    assert "384 ids, of which 257 are tokens" in card.content
    assert f"sees {tiny.block_size} tokens" in card.content

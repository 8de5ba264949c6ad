"""`import` and `export` as commands: words, JSON, exit codes, and what other programs make of the files."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smallgpt.domain.config import GPTConfig
from smallgpt.infrastructure.character_tokenizer import CharacterTokenizer
from smallgpt.infrastructure.formats import nanogpt, own
from smallgpt.infrastructure.formats.character_tables import write_characters
from smallgpt.infrastructure.token_store import open_store
from smallgpt.interfaces.http.bodies import ChatBody, CompletionBody, parse
from smallgpt.interfaces.http.errors import ApiError
from smallgpt.interfaces.http.limits import Limits
from smallgpt.interfaces.http.planning import Served, plan_chat, plan_completion
from smallgpt.interfaces.opening import open_model
from tests.infrastructure.formats.models import SMALL, made_model
from tests.interfaces.conftest import Run
from tests.interfaces.written_model import write_model

ROOT = Path(__file__).parents[2]
LETTERS = CharacterTokenizer("\n ,.!abcdefghijklmnopqrstuvwxyzOBé")
CHARACTERS = GPTConfig(block_size=24, vocab_size=LETTERS.vocab_size, n_layer=2, n_head=2, n_embd=32, dropout=0.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """nanoGPT's files of a model of characters."""
    folder = tmp_path / "out-letters"
    folder.mkdir()
    nanogpt.write(made_model(CHARACTERS, LETTERS, spread=0.05), folder)
    return folder


def other_program(name: str, folder: Path) -> dict[str, Any]:
    """What another program computes, in a process of its own."""
    command = [sys.executable, "-m", "tests.interfaces.other_programs", name, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def agree(answer: dict[str, Any], path: Path) -> None:
    opened = open_model(path)
    assert opened.tokenizer is not None
    context = torch.tensor([opened.tokenizer.encode("Once upon a time")])
    expected = opened.model.generate(context, 20, temperature=0)[0].tolist()
    assert answer["tokens"] == expected
    with torch.inference_mode():
        logits = opened.model(context)[0, -1]
    torch.testing.assert_close(torch.tensor(answer["logits"]), logits, rtol=1e-5, atol=1e-4)


def test_the_hobby_projects_script_runs_on_an_export(run: Run, model: Path, tmp_path: Path) -> None:
    code, said, _ = run("export", str(model), "--to", "seed", "--out", str(tmp_path / "Model"))
    assert code == 0
    lines = said.splitlines()
    assert lines[0] == f"written     {tmp_path / 'Model'} (seed)"
    assert lines[1].startswith("compared    with the formulas, from the file's own tensors, on ")
    assert lines[3:] == ["greedy      64 of 64 tokens are equal", "weights     equal to the bit"]
    agree(other_program("seed", tmp_path / "Model"), model)


def test_nanogpts_script_runs_on_an_export_with_its_table(run: Run, letters: Path, tmp_path: Path) -> None:
    assert run("import", str(letters), "--out", str(tmp_path / "ours"))[0] == 0
    out = tmp_path / "out"
    code, said, _ = run("export", str(tmp_path / "ours"), "--to", "nanogpt", "--out", str(out))
    assert code == 0
    assert "note        its sample.py looks for meta.pkl in data/smallgpt: put it there" in said
    (out / "data" / "smallgpt").mkdir(parents=True)
    (out / "meta.pkl").rename(out / "data" / "smallgpt" / "meta.pkl")
    agree(other_program("nanogpt", out), tmp_path / "ours")


def test_json_is_all_that_a_program_reads(run: Run, model: Path, tmp_path: Path) -> None:
    code, said, _ = run("export", str(model), "--to", "nanogpt", "--out", str(tmp_path / "out"), "--json")
    answer = json.loads(said)
    assert code == 0
    assert answer.keys() == {"out", "format", "reader", "parity", "exact", "change", "notes"}
    assert (answer["format"], answer["exact"], answer["parity"]["passed"]) == ("nanogpt", True, True)
    code, said, _ = run("import", str(tmp_path / "out" / "ckpt.pt"), "--out", str(tmp_path / "back"), "--json")
    assert (code, json.loads(said)["exact"]) == (0, True)


def test_imported_and_foreign_files_are_models_for_every_command(run: Run, letters: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    assert run("import", str(letters / "ckpt.pt"), "--out", str(ours))[0] == 0
    told = []
    for path in (ours, letters, letters / "ckpt.pt"):
        words = ["--prompt", "Once upon", "--max-new-tokens", "12", "--seed", "1", "--json"]
        code, said, _ = run("generate", str(path), *words)
        assert code == 0
        told.append(json.loads(said)[0]["text"])
    assert len(set(told)) == 1
    assert len(told[0]) == len("Once upon") + 12
    (tmp_path / "text.txt").write_text("Once upon a time, a bad cat sat on a mat. " * 9)
    code, said, _ = run("evaluate", str(letters), "--text", str(tmp_path / "text.txt"), "--json")
    assert code == 0
    assert json.loads(said)["bits_per_byte"] > 0


def test_a_character_that_the_model_does_not_know_is_named(run: Run, letters: Path, tmp_path: Path) -> None:
    code, _, words = run("generate", str(letters), "--prompt", "Once, Zoe")
    assert code == 3
    assert f"'Z' is none of the {LETTERS.vocab_size} characters that this model knows" in words
    (tmp_path / "text.txt").write_text("Zoe sat. " * 30)
    code, _, words = run("evaluate", str(letters), "--text", str(tmp_path / "text.txt"))
    assert (code, "'Z' is none of" in words) == (3, True)


def test_a_server_says_so_with_400() -> None:
    served = Served("letters", LETTERS, CHARACTERS.block_size)
    limits = Limits(streams=1)
    body = parse(CompletionBody, b'{"model": "letters", "prompt": "Once, Zoe"}')
    with pytest.raises(ApiError, match="'Z' is none of the") as refused:
        plan_completion(body, served, limits)
    assert (refused.value.status, refused.value.param) == (400, "prompt")
    said = parse(ChatBody, '{"model": "letters", "messages": [{"role": "user", "content": "中"}]}'.encode())
    with pytest.raises(ApiError, match="'中' is none of the") as refused:
        plan_chat(said, served, limits)
    assert refused.value.status == 400


def test_token_files_of_characters_are_prepared_with_their_table(run: Run, letters: Path, tmp_path: Path) -> None:
    text = "Once upon a time, a bad cat sat on a mat.\n" * 40
    bins = tmp_path / "shakespeare_char"
    bins.mkdir()
    write_characters(LETTERS, bins / "meta.pkl")
    for name, part in (("train.bin", text[:1200]), ("val.bin", text[1200:])):
        np.array(LETTERS.encode(part), dtype=np.uint16).tofile(bins / name)
    data = tmp_path / "data"
    assert run("prepare", "bins", str(bins), "--out", str(data))[0] == 0
    store = open_store(data)
    assert store.tokenizer is not None
    assert (store.tokenizer.name, store.vocab_size) == ("characters", LETTERS.vocab_size)
    assert store.text_bytes("train") == 1200
    code, said, _ = run("evaluate", str(letters), "--data", str(data), "--json")
    assert code == 0
    assert json.loads(said)["bytes"] == len(text) - 1200
    sizes = ["--model.n-layer", "1", "--model.n-head", "1", "--model.n-embd", "16", "--model.block-size", "16"]
    looks = ["--training.max-steps", "2", "--training.batch-size", "2", "--schedule.warmup", "1"]
    words = ["--evaluation.prompt", "Zoe", "--evaluation.sample-tokens", "4", "--evaluation.sample-every", "1"]
    code, _, said = run("train", "--data", str(data), "--out", str(tmp_path / "run"), *sizes, *looks, *words)
    assert code == 0, said
    assert open_model(tmp_path / "run").tokenizer is not None


def test_the_hobby_projects_token_files_are_prepared(run: Run, tmp_path: Path) -> None:
    bins = tmp_path / "bins"
    bins.mkdir()
    for name, size in (("train.bin", 3000), ("validation.bin", 500)):
        np.random.default_rng(0).integers(0, 256, size).astype(np.uint16).tofile(bins / name)
    code, _, said = run("prepare", "bins", str(bins), "--out", str(tmp_path / "data"), "--tokenizer", "bytes")
    assert code == 0, said
    assert len(open_store(tmp_path / "data").tokens("validation")) == 500


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("file", ["tokenizer.pkl", "small_gpt_weights.pt"])
@pytest.mark.parametrize("command", ["import", "generate"])
def test_a_file_with_code_in_it_is_refused_and_nothing_runs(
    file: str, command: str, run: Run, model: Path, tmp_path: Path
) -> None:
    folder, proof = tmp_path / "Model", tmp_path / "proof"
    assert run("export", str(model), "--to", "seed", "--out", str(folder))[0] == 0
    if file.endswith(".pkl"):
        (folder / file).write_bytes(pickle.dumps(Payload(proof)))
    else:
        torch.save({"a": torch.ones(1), "b": Payload(proof)}, folder / file)
    more = ["--out", str(tmp_path / "out")] if command == "import" else ["--prompt", "a"]
    code, said, words = run(command, str(folder), *more)
    assert (code, said) == (4, "")
    assert f"{os.name}.system" in words
    assert "othing in it was run" in words
    assert len(words.splitlines()) <= 2
    assert not proof.exists()
    assert not (tmp_path / "out").exists()
    if command == "import" and file == "tokenizer.pkl":
        assert run("import", str(folder), "--tokenizer", "bytes", *more)[0] == 0
        assert not proof.exists()


def test_exit_codes_of_what_cannot_be_done(run: Run, model: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    tanh = made_model(SMALL.model_copy(update={"activation": "gelu_tanh"}))
    (tmp_path / "tanh").mkdir()
    own.write(tanh, tmp_path / "tanh")
    (tmp_path / "ckpt.pt").write_bytes(b"PK\x03\x04 cut short")
    for words, expected in (
        (["export", str(model), "--to", "word", *out], 2),
        (["export", str(tmp_path / "tanh"), "--to", "seed", *out], 2),
        (["export", str(tmp_path / "tanh"), "--to", "nanogpt", *out], 2),
        (["export", str(model), "--to", "seed", "--out", str(model)], 2),
        (["export", str(tmp_path / "nowhere"), "--to", "seed", *out], 4),
        (["import", str(tmp_path / "nowhere"), *out], 4),
        (["import", str(tmp_path / "ckpt.pt"), *out], 4),
        (["import", str(tmp_path / "ckpt.pt"), "--tokenizer", "words", *out], 4),
    ):
        code, said, told = run(*words)
        assert (code, said) == (expected, ""), words
        assert 1 <= len(told.splitlines()) <= 2
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("to", ["gguf", "smallgpt", "peft"])
def test_an_export_does_not_replace_its_own_source(to: str, run: Run, model: Path, tmp_path: Path) -> None:
    source = tmp_path / "models" / "mine"
    assert run("import", str(exported(run, model, tmp_path)), "--out", str(source))[0] == 0
    (tmp_path / "models" / "parity.json").write_text("{}")
    (tmp_path / "link").symlink_to(source)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    for out in (source, source.parent, tmp_path / "link"):
        code, said, words = run("export", str(source), "--to", to, "--out", str(out), "--overwrite")
        assert (code, said) == (2, "")
        assert words == f"smallgpt: {source} is to be read, and would be lost with {out}; choose another --out\n"
        assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_an_export_does_not_replace_a_run(run: Run, model: Path, tmp_path: Path) -> None:
    out = exported(run, model, tmp_path)
    (out / "config.toml").write_text("")
    code, _, words = run("export", str(model), "--to", "gguf", "--out", str(out), "--overwrite")
    assert (code, (out / "config.toml").exists()) == (2, True)
    assert words == f"smallgpt: {out} is a run's folder, so it is not replaced; choose another --out\n"


def test_an_export_does_not_replace_the_current_folder(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported(run, model, tmp_path))
    for out in (".", str(tmp_path / "Model")):
        code, said, words = run("export", str(model), "--to", "smallgpt", "--out", out, "--overwrite")
        assert (code, said) == (2, "")
        assert (
            words == f"smallgpt: {out} is the current folder or holds it, so it is not replaced; choose another --out\n"
        )
    assert (tmp_path / "Model" / "parity.json").exists()


def exported(run: Run, model: Path, tmp_path: Path) -> Path:
    assert run("export", str(model), "--to", "seed", "--out", str(tmp_path / "Model"))[0] == 0
    return tmp_path / "Model"

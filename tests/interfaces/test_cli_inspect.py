"""`smallgpt inspect`: what it shows is what the model computes."""

import json
import re
from math import log2
from pathlib import Path

import pytest
import torch

import smallgpt
from tests.interfaces.conftest import Run
from tests.interfaces.written_model import BLOCK_SIZE, write_model

PROMPT = "abé d"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


def test_predictions_are_the_models(run: Run, model: str) -> None:
    code, out, err = run("inspect", model, "--prompt", PROMPT, "--json", "--top=4")
    assert (code, err) == (0, "")
    tokens = json.loads(out)["tokens"]
    ids = [*PROMPT.encode()]
    probabilities = smallgpt.load(model)(torch.tensor([ids]))[0, :, :257].softmax(-1)  # the rest is padding
    assert [token["id"] for token in tokens] == ids
    assert [token["probability"] for token in tokens[1:]] == pytest.approx(
        [probabilities[at, id].item() for at, id in enumerate(ids[1:])], rel=1e-4
    )
    assert tokens[0]["probability"] is None
    best = probabilities.topk(4)
    for at, token in enumerate(tokens):
        assert [each["id"] for each in token["next"]] == best.indices[at].tolist()
        assert [each["probability"] for each in token["next"]] == pytest.approx(best.values[at].tolist(), rel=1e-4)


@pytest.mark.parametrize("at", [0, 2, 5])
def test_the_lens_ends_in_the_models_own_prediction(run: Run, model: str, at: int) -> None:
    found = json.loads(run("inspect", model, "--prompt", PROMPT, "--json", f"--at={at}")[1])
    assert found["at"] == at
    assert [place["after"] for place in found["lens"]] == ["embedding", "block 0", "block 1"]
    assert [each["id"] for each in found["lens"][-1]["next"]] == [each["id"] for each in found["tokens"][at]["next"]]
    with torch.no_grad():
        _, cache = smallgpt.load(model).run_with_cache(PROMPT)
    norms = [cache[f"blocks.{name}"][0, at].norm().item() for name in ("0.hook_resid_pre", "1.hook_resid_pre")]
    assert [place["norm"] for place in found["lens"][:2]] == pytest.approx(norms, rel=1e-5)


def test_attention_is_summed_up_head_by_head(run: Run, model: str) -> None:
    heads = json.loads(run("inspect", model, "--prompt", PROMPT, "--json")[1])["heads"]
    assert [(head["layer"], head["head"]) for head in heads] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with torch.no_grad():
        _, cache = smallgpt.load(model).run_with_cache(PROMPT)
    weights = cache["blocks.1.attn.hook_pattern"][0, 0].tolist()
    looking = weights[1:]
    entropies = [-sum(share * log2(share) for share in row if share) for row in looking]
    assert heads[2]["entropy"] == pytest.approx(sum(entropies) / 5, rel=1e-4)
    assert heads[2]["first"] == pytest.approx(sum(row[0] for row in looking) / 5, rel=1e-4)
    assert heads[2]["previous"] == pytest.approx(sum(row[at] for at, row in enumerate(looking)) / 5, rel=1e-4)
    assert heads[2]["itself"] == pytest.approx(sum(row[at + 1] for at, row in enumerate(looking)) / 5, rel=1e-4)
    expected = sorted(range(6), key=lambda at: -weights[-1][at])[:3]
    assert [each["position"] for each in heads[2]["most"]] == expected


def test_people_see_tables(run: Run, model: str) -> None:
    code, out, err = run("inspect", model, "--prompt", PROMPT, "--top=2")
    assert (code, err) == (0, "")
    assert f"model {model}: 2 blocks of 2 heads, width 32" in out
    assert f"6 of at most {BLOCK_SIZE} tokens" in out
    for words in ("Logit lens: what would follow token 5", "embedding", "block 1", "1.1", "likeliest next", "bits"):
        assert words in out
    assert len(out.splitlines()) < 40


def test_one_token_alone_looks_at_itself(run: Run, model: str) -> None:
    for head in json.loads(run("inspect", model, "--prompt", "", "--json")[1])["heads"]:
        assert (head["entropy"], head["first"], head["previous"], head["itself"]) == (0, 1, 0, 1)


@pytest.mark.parametrize("prompt", ["a$b$c", "a\tb\nc"])
def test_the_maps_are_a_picture(run: Run, model: str, tmp_path: Path, prompt: str) -> None:
    code, out, err = run("inspect", model, "--prompt", prompt, "--plot", str(tmp_path / "maps.png"))
    assert (code, err) == (0, "")
    assert out.endswith(f"attention maps: {tmp_path / 'maps.png'}\n")
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a" * (BLOCK_SIZE + 1)], "the prompt has 25 tokens, and .* sees 24 at once; give less text"),
        (["--prompt", "abc", "--at", "3"], "at is 3; the prompt's tokens are 0 to 2"),
        (["--prompt", "abc", "--at=-1"], "at is -1"),
        (["--prompt", "abc", "--top", "0"], "top is 0; it must be 1 or more"),
        (["--prompt", "abc", "--plot", "maps"], r"must end in \.png, \.svg or \.pdf"),
    ],
)
def test_mistakes_are_said_in_words(run: Run, model: str, words: list[str], message: str) -> None:
    code, out, err = run("inspect", model, *words)
    assert (code, out) == (2, "")
    assert re.search(message, err)

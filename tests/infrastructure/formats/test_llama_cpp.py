"""llama.cpp itself, through xllamacpp: the same greedy tokens, and the same ids of a text, from the exported file."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import xllamacpp

from smallgpt.domain.config import Activation, GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.bpe_training import train_bpe
from smallgpt.infrastructure.formats import gguf_files
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.infrastructure.tokenizers import Tokenizer, byte_tokenizer

pytestmark = pytest.mark.slow

STORY = (
    'Once upon a time there was a little hat. Tom said, "It\'s mine!" but the dog had eaten 17 of them.\n\n'
    "Then Ann found a naïve owl,\tand they all went home. The owl said: don't cry, we'll bake a cake with 3 eggs."
)
TEXTS = [
    STORY,
    "  two  spaces \n\n\n and\r\nlines\t\t",
    "Über 中文 🎉 <|endoftext|> “quotes” e\u0301 ½ ٣",
    "x" * 50 + " " * 50,
]
TOKENS = 64


@contextmanager
def llama_cpp(path: Path) -> Iterator[Any]:
    """Ask llama.cpp with the model of a file: its server, in float32 as far as it can."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = 1
    params.n_parallel, params.warmup, params.fit_params, params.verbosity = 1, False, False, 0
    server = xllamacpp.Server(params)

    def ask(path: str, **body: Any) -> Any:
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    yield ask


def learnt_by_heart(tokenizer: Tokenizer, activation: Activation, bias: bool) -> PortableModel:
    """A model that has learnt STORY, so that rounding does not decide which token is the likeliest."""
    torch.manual_seed(0)
    ids = torch.tensor([tokenizer.encode(STORY)])
    config = GPTConfig(
        block_size=192, vocab_size=384, n_layer=2, n_head=2, n_embd=64, dropout=0.0, bias=bias, activation=activation
    )
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        model(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return PortableModel(config, weights, tokenizer)


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize(("activation", "bias"), [("gelu_tanh", True), ("gelu", False)])
def test_llama_cpp_generates_the_same_tokens(dtype: Any, activation: Activation, bias: bool, tmp_path: Path) -> None:
    tokenizer = train_bpe([STORY] * 20, 300)
    model = learnt_by_heart(tokenizer, activation, bias)
    gguf_files.write(model, tmp_path, dtype=dtype)
    prompt = tokenizer.encode(STORY)[:8]
    ours = model.model().generate(torch.tensor([prompt]), TOKENS, top_k=1)[0, 8:].tolist()
    with llama_cpp(tmp_path / "model.gguf") as ask:
        theirs = ask("/completion", prompt=prompt, n_predict=TOKENS, temperature=0, return_tokens=True)["tokens"]
    assert theirs == ours
    assert tokenizer.decode(theirs) in STORY


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_llama_cpp_finds_the_same_probabilities(dtype: Any, tmp_path: Path) -> None:
    """As near as its GELU, a table in half precision, lets it come."""
    tokenizer = train_bpe([STORY] * 20, 300)
    model = learnt_by_heart(tokenizer, "gelu_tanh", True)
    gguf_files.write(model, tmp_path, dtype=dtype)
    prompt = tokenizer.encode(STORY)[:8]
    with torch.inference_mode():
        ours = model.model()(torch.tensor([prompt]))[0, -1].log_softmax(-1)
    with llama_cpp(tmp_path / "model.gguf") as ask:
        answer = ask("/completion", prompt=prompt, n_predict=1, temperature=0, n_probs=20)
    found = {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}
    assert len(found) == 20
    assert found == pytest.approx({number: float(ours[number]) for number in found}, abs=0.02)


@pytest.mark.parametrize("kind", ["bpe", "bytes", "gpt2"])
def test_llama_cpp_gives_a_text_the_same_ids_and_ids_the_same_text(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    makers: dict[str, Callable[[], Tokenizer]] = {
        "bpe": lambda: train_bpe([*TEXTS] * 9, 400),
        "bytes": byte_tokenizer,
        "gpt2": lambda: request.getfixturevalue("gpt2"),
    }
    tokenizer = makers[kind]()
    config = GPTConfig(block_size=8, vocab_size=tokenizer.vocab_size + 3, n_layer=1, n_head=1, n_embd=32, dropout=0.0)
    weights = {name: parameter.detach() for name, parameter in GPT(config).named_parameters()}
    gguf_files.write(PortableModel(config, weights, tokenizer), tmp_path)
    with llama_cpp(tmp_path / "model.gguf") as ask:
        for text in TEXTS:
            ids = ask("/tokenize", content=text, add_special=True, parse_special=False)["tokens"]
            assert ids == tokenizer.encode(text)
            assert ask("/detokenize", tokens=ids)["content"] == text

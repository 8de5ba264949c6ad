"""Packed matrices against the formula in float64, and models made of them against the model itself."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from smallgpt.application.engine import Engine
from smallgpt.application.streams import Request
from smallgpt.domain.config import Activation, GPTConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.sampling import Sampling
from smallgpt.kernels.packed import bfloat16, check_weights, float32, int8, matrix_bytes, onednn, pack, packing

# one and two rows, more, and more than oneDNN is used for; an odd number of outputs cannot be halved
SHAPES = [(1, 64, 256), (2, 96, 130), (2, 33, 40), (7, 51, 64), (16, 128, 256), (80, 64, 96)]


def operands(rows: int, V: int, C: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, 1, C), torch.randn(V, C) / C**0.5, torch.randn(V)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x.double() @ weight.double().t()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("rows", "V", "C"), SHAPES)
def test_float32_is_the_product_whichever_way_is_taken(rows: int, V: int, C: int, with_bias: bool) -> None:
    x, weight, bias = operands(rows, V, C)
    chosen = bias if with_bias else None
    y = float32.Matrix(weight, chosen)(x)
    assert y.shape == (rows, 1, V)
    torch.testing.assert_close(y.double(), exact(x, weight, chosen), rtol=1e-5, atol=1e-5)


def test_a_machine_without_onednn_takes_torchs_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "is_available", lambda dtype: False)
    x, weight, bias = operands(16, 64, 32)
    torch.testing.assert_close(float32.Matrix(weight, bias)(x).double(), exact(x, weight, bias), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        bfloat16.Matrix(weight, bias)(x.bfloat16()).double(), exact(x, weight, bias), rtol=0.03, atol=0.03
    )


@pytest.mark.parametrize(("rows", "V", "C"), SHAPES)
def test_bfloat16_is_the_product_of_rounded_operands_rounded(rows: int, V: int, C: int) -> None:
    x, weight, bias = operands(rows, V, C)
    y = bfloat16.Matrix(weight, bias)(x.bfloat16())
    rounded = exact(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), rounded, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("rows", "V", "C"), [*SHAPES, (1, 51, 64), (2, 257, 64), (2, 33, 96)])
def test_int8_is_the_product_of_bfloat16_rows_with_scaled_whole_numbers(
    rows: int, V: int, C: int, with_bias: bool
) -> None:
    x, weight, bias = operands(rows, V, C)
    chosen = bias if with_bias else None
    scale, integers = int8.quantise(weight)
    assert scale.log2().frac().abs().max() == 0
    y = int8.Matrix(weight, chosen)(x.bfloat16())
    assert y.dtype == torch.bfloat16
    expected = exact(x.bfloat16(), integers * scale.double()[:, None], chosen)
    torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=0.02)


def test_rounding_to_whole_numbers_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(50, 64) * torch.logspace(-3, 3, 50)[:, None]
    weight[7] = 0
    scale, integers = int8.quantise(weight)
    assert torch.equal((scale[:, None] * integers).float(), scale.float()[:, None] * integers), "exact in bfloat16"
    scale = scale.float()
    largest = integers.abs().amax(1)
    assert int(largest.max()) <= 127
    assert int(largest[torch.arange(50) != 7].min()) >= 63, "at least seven bits are used"
    assert ((integers * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()
    assert torch.equal(int8.Matrix(weight, None)(torch.zeros(1, 1, 64).bfloat16()).float(), torch.zeros(1, 1, 50)), (
        "zeros stay zeros"
    )


@pytest.mark.parametrize("gelu", ["none", "tanh"])
@pytest.mark.parametrize("rows", [1, 2, 3, 80])
@pytest.mark.parametrize("kind", [float32.Matrix, bfloat16.Matrix, int8.Matrix])
def test_each_passes_through_a_gelu(
    kind: type[float32.Matrix | bfloat16.Matrix | int8.Matrix], rows: int, gelu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = operands(rows, 64, 96)
    x = x if kind is float32.Matrix else x.bfloat16()
    matrix = kind(weight, bias)
    expected = torch.nn.functional.gelu(matrix(x).double(), approximate=gelu)
    off = 1e-5 if kind is float32.Matrix else 0.03
    torch.testing.assert_close(matrix(x, gelu=gelu).double(), expected, rtol=off, atol=off)
    monkeypatch.setattr(onednn, "is_available", lambda dtype: False)
    torch.testing.assert_close(kind(weight, bias)(x, gelu=gelu).double(), expected, rtol=off, atol=off)


CONFIG = GPTConfig(block_size=16, vocab_size=64, n_layer=2, n_head=2, n_embd=32, dropout=0.0)


def model(config: GPTConfig = CONFIG) -> GPT:
    torch.manual_seed(0)
    return GPT(config).eval()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize(("weights", "off"), [("float32", 1e-6), ("bfloat16", 0.03), ("int8", 0.05)])
def test_a_packed_model_has_the_models_logits_but_for_rounding(
    weights: packing.Weights, off: float, activation: Activation
) -> None:
    config = CONFIG.model_copy(update={"activation": activation})
    idx, packed = torch.randint(64, (3, 9)), model(config)
    pack(packed, weights)
    with torch.inference_mode():
        expected, found = model(config)(idx), packed(idx)
    error = float((found - expected).norm() / expected.norm())
    assert error < off
    assert error > 0 or weights == "float32", "nothing was rounded"


@pytest.mark.parametrize("prompts", [1, 4])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_the_engine_on_it_gives_the_tokens_of_one_pass_over_all(weights: packing.Weights, prompts: int) -> None:
    packed = model()
    with torch.no_grad():
        for name, parameter in packed.named_parameters():
            if ".h." in name and parameter.dim() == 2:
                parameter.mul_(10)  # or the model says its last token again
    pack(packed, weights)
    engine = Engine(packed, prompts)
    streams = [engine.add(Request([n + 1] * (n + 1), 10, Sampling(temperature=0))) for n in range(prompts)]
    while engine.n_free < prompts:
        engine.step()
    for stream in streams:
        with torch.inference_mode():
            logits = packed(torch.tensor([stream.ids]))[0, len(stream.request.prompt) - 1 : -1]
        short = logits.amax(-1) - logits.gather(-1, torch.tensor(stream.ids[-10:])[:, None])[:, 0]
        assert float(short.max()) <= (1e-5 if weights == "float32" else 0.03 * float(logits.abs().max()))


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_a_processor_without_avx512_runs_them(weights: str) -> None:
    script = f"""
import torch
from smallgpt.domain.config import Activation, GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.kernels.packed import pack
model = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=1, n_head=2, n_embd=32, dropout=0.0)).eval()
idx = torch.arange(10)[None]
with torch.inference_mode():
    exact = model(idx)
    pack(model, "{weights}")
    for length in (1, 10):
        found = model(idx[:, :length])
        assert (found - exact[:, :length]).norm() < 0.05 * exact[:, :length].norm()
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, capture_output=True, timeout=60)


def test_bytes_of_the_matrices_are_counted() -> None:
    config = GPTConfig()
    weights = sum(p.numel() for name, p in GPT(config).named_parameters() if p.dim() == 2 and "wpe" not in name)
    assert [matrix_bytes(config, kind) for kind in ("float32", "bfloat16", "int8")] == [
        4 * weights,
        2 * weights,
        weights,
    ]


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="weights is 'int4'; choose float32, bfloat16 or int8"):
        pack(model(), "int4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="weights int8 are for generation on a CPU"):
        check_weights("int8", torch.device("cuda"))

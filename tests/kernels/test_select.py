"""The choice of implementations, and the whole model with each of them."""

import pytest
import torch
from torch import Tensor

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import HardwareError, KernelError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.ops import TORCH_OPS
from smallgpt.kernels import launching, select
from smallgpt.kernels.expectations import Shape, preference
from smallgpt.kernels.select import BACKENDS, LOSS_BACKENDS, OPERATIONS, backends_of, candidates

CPU = torch.device("cpu")


def test_auto_takes_torch_on_a_cpu_and_says_that_it_ran() -> None:
    selection = select.select("auto", "cpu")
    assert selection.chosen == dict.fromkeys(OPERATIONS, "torch")
    assert selection.ops == BACKENDS["torch"]
    assert all("launched on cpu" in reason for reason in selection.reasons.values())


def test_one_operation_can_be_chosen_on_its_own() -> None:
    selection = select.select("torch", "cpu", layer_norm="reference")
    assert selection.chosen == {"attention": "torch", "layer_norm": "reference", "linear_cross_entropy": "torch"}
    assert selection.ops.layer_norm is BACKENDS["reference"].layer_norm
    assert selection.ops.add_layer_norm is BACKENDS["reference"].add_layer_norm
    assert selection.ops.causal_attention is BACKENDS["torch"].causal_attention
    assert "asked for" in selection.reasons["layer_norm"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_implementation_proves_right_on_a_cpu_ours_in_the_interpreter(dtype: torch.dtype) -> None:
    rows = list(candidates("cpu", dtype))
    assert [(row.operation, row.backend) for row in rows] == [(o, b) for o in OPERATIONS for b in backends_of(o)]
    for row in rows:
        if dtype == torch.bfloat16 and row.backend.startswith("triton"):
            assert not row.available
            assert "interpreter cannot do bfloat16" in row.reason
        else:
            assert row.available, row
    assert [row.backend for row in rows if row.chosen] == ["torch"] * len(OPERATIONS)


def test_without_interpreter_or_gpu_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "INTERPRETING", False)
    words = "^attention: triton does not run on cpu: the Triton kernels need a GPU, .*TRITON_INTERPRET=1"
    with pytest.raises(KernelError, match=words) as caught:
        select.select("triton", "cpu")
    assert caught.value.operation == "attention"
    assert len(str(caught.value).splitlines()) == 1
    assert "--" not in str(caught.value), "flags are the caller's"
    rows = [row for row in candidates("cpu", torch.float32) if row.backend.startswith("triton")]
    assert len(rows) == 5
    assert not any(row.available for row in rows)
    assert select.select("auto", "cpu").chosen == dict.fromkeys(OPERATIONS, "torch")


@pytest.mark.parametrize("design", ["triton", "triton-chunked", "triton-flash"])
def test_the_loss_has_two_designs_to_choose_from(design: str) -> None:
    selection = select.select("torch", "cpu", linear_cross_entropy=design)  # type: ignore[arg-type]
    assert selection.chosen["linear_cross_entropy"] == design
    assert selection.ops.linear_cross_entropy is LOSS_BACKENDS[design].linear_cross_entropy
    assert len({ops.linear_cross_entropy for ops in LOSS_BACKENDS.values()}) == len(LOSS_BACKENDS)


PREFERENCES = [  # (architecture, dtype, head size, context, width) -> what auto tries first
    ("sm_75", torch.float16, 64, 128, 256, ("torch", "triton", "triton-chunked")),  # no tensor cores in Triton
    ("sm_80", torch.bfloat16, 64, 128, 256, ("triton", "triton", "triton")),
    ("sm_90", torch.bfloat16, 128, 128, 256, ("triton", "triton", "triton")),  # one tile
    ("sm_80", torch.bfloat16, 128, 128, 256, ("torch", "triton", "triton")),  # which does not fit here
    ("sm_90", torch.bfloat16, 128, 1024, 256, ("torch", "triton", "triton")),  # where others' kernels lead
    ("sm_90", torch.bfloat16, 64, 1024, 16384, ("triton", "torch", "triton")),  # wider than the row kernels
    ("sm_90", torch.float32, 64, 1024, 256, ("torch", "triton", "triton")),
]


@pytest.mark.parametrize(("architecture", "dtype", "head_size", "context", "width", "first"), PREFERENCES)
def test_what_auto_tries_first_on_a_gpu(
    architecture: str, dtype: torch.dtype, head_size: int, context: int, width: int, first: tuple[str, ...]
) -> None:
    shape = Shape(head_size, context, width)
    with launching.tiled_for(architecture):
        for operation, expected in zip(OPERATIONS, first, strict=True):
            order = preference(operation, torch.device("cuda"), dtype, shape)
            assert order[0][0] == expected, operation
            assert {"torch", "reference"} <= {name for name, _ in order}, "something is left when ours fails"


def breaks(qkv: Tensor, dropout: float) -> Tensor:
    raise RuntimeError("no kernel image is available\nwith a second line")


def slightly_wrong(qkv: Tensor, dropout: float) -> Tensor:
    return TORCH_OPS.causal_attention(qkv, dropout) * 1.01


def nan_in_one_place(qkv: Tensor, dropout: float) -> Tensor:
    y = TORCH_OPS.causal_attention(qkv, dropout)
    return torch.where(torch.arange(y.size(1)).view(-1, 1, 1) == y.size(1) - 1, torch.nan, y)


def right_forwards_only(qkv: Tensor, dropout: float) -> Tensor:
    y = TORCH_OPS.causal_attention(qkv, dropout)
    return y.detach() + 0 * qkv.sum()


FAULTS = [breaks, slightly_wrong, nan_in_one_place, right_forwards_only]


@pytest.mark.parametrize("fault", FAULTS)
def test_an_implementation_that_fails_or_is_wrong_is_passed_over(
    fault: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "torch", BACKENDS["torch"]._replace(causal_attention=fault))  # type: ignore[arg-type]
    selection = select.select("auto", "cpu")
    assert selection.chosen["attention"] == "reference"
    assert selection.chosen["linear_cross_entropy"] == "torch", "the others are not its fault"
    assert "torch" in selection.reasons["attention"], "the reason says what was passed over"


@pytest.mark.parametrize("fault", FAULTS)
def test_an_explicit_choice_that_cannot_run_is_an_error(fault: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "torch", BACKENDS["torch"]._replace(causal_attention=fault))  # type: ignore[arg-type]
    for wishes in ({"backend": "torch"}, {"attention": "torch"}):
        with pytest.raises(KernelError, match=r"^attention: torch ") as caught:
            select.select(**wishes)  # type: ignore[arg-type]
        assert len(str(caught.value).splitlines()) == 1


def test_a_gpu_that_triton_does_not_serve_leaves_auto_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> str:
        raise HardwareError("too old")

    monkeypatch.setattr("smallgpt.kernels.expectations.architecture", refuse)
    for operation in OPERATIONS:
        order = preference(operation, torch.device("cuda"), torch.float16, Shape())
        assert [name for name, _ in order] == ["torch", "reference"]


def test_choosing_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    select.select("auto", "cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("length", [1, 7, 12])
def test_every_parameters_gradient_is_the_references_in_float64(tiny: GPTConfig, smoothing: float, length: int) -> None:
    model = GPT(tiny, BACKENDS["torch"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    exact = GPT(tiny, BACKENDS["reference"]).double()
    exact.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    idx, targets = torch.randint(61, (3, length)), torch.randint(61, (3, length))
    targets[0, : length // 2] = -100
    losses = [m(idx, targets, label_smoothing=smoothing) for m in (model, exact)]
    for loss in losses:
        torch.autograd.backward(loss)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for (name, found), (_, wanted) in zip(model.named_parameters(), exact.named_parameters(), strict=True):
        assert found.grad is not None, name
        assert wanted.grad is not None, name
        assert wanted.grad.norm() > 0, name
        assert (found.grad.double() - wanted.grad).norm() <= 1e-5 * wanted.grad.norm() + 1e-8, name


def gradient_penalty(model: GPT, idx: Tensor, *, create_graph: bool) -> Tensor:
    """The squared gradient of one parameter, under the same dropout at every call."""
    torch.manual_seed(0)
    bias = model.get_parameter("transformer.ln_f.bias")
    (gradient,) = torch.autograd.grad(model(idx, idx), bias, create_graph=create_graph)
    return gradient.square().sum()


def test_the_formulas_of_a_whole_model_can_be_differentiated_twice(tiny: GPTConfig) -> None:
    model = GPT(tiny.model_copy(update={"dropout": 0.2}), BACKENDS["reference"]).double()
    idx = torch.randint(61, (2, 7))
    torch.autograd.backward(gradient_penalty(model, idx, create_graph=True))
    for name in ("lm_head.weight", "transformer.h.0.attn.c_attn.weight", "transformer.ln_f.weight"):
        weight = model.get_parameter(name)
        assert weight.grad is not None
        direction = torch.randn_like(weight)
        with torch.no_grad():
            sides = []
            for step in (1e-5, -2e-5):
                weight.add_(direction, alpha=step)
                with torch.enable_grad():
                    sides.append(gradient_penalty(model, idx, create_graph=False).item())
            weight.add_(direction, alpha=1e-5)
        assert (weight.grad * direction).sum().item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"reference"}))
def test_a_second_derivative_of_any_other_is_refused_not_dropped(tiny: GPTConfig, backend: str) -> None:
    words = r'no second derivative .* smallgpt.load\(RUN, kernels="reference"\)'
    idx = torch.randint(61, (2, 7))
    with pytest.raises(RuntimeError, match=f"^linear-cross-entropy: .* {words}"):
        gradient_penalty(GPT(tiny, BACKENDS[backend]), idx, create_graph=True)
    qkv = torch.randn(1, 5, 3, 2, 8, requires_grad=True)
    y = BACKENDS[backend].causal_attention(qkv, 0.0)
    with pytest.raises(RuntimeError, match=f"^attention: .* {words}"):
        torch.autograd.grad(y.sum(), qkv, create_graph=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_generates_the_same_with_every_backend(tiny: GPTConfig, backend: str) -> None:
    model = GPT(tiny, BACKENDS[backend]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    plain = GPT(tiny).eval()
    plain.load_state_dict(model.state_dict())
    idx = torch.randint(61, (2, 4))
    assert torch.equal(model.generate(idx, 20, temperature=0), plain.generate(idx, 20, temperature=0))

"""One optimizer step against plain formulas: accumulation, clipping, scaling, skipping, in the right order."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.application.ports import Batches
from smallgpt.application.step import Stepper
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.ops import TORCH_OPS
from smallgpt.domain.processes import Alone

Gradients = dict[str, Tensor]
Weights = dict[str, Tensor]
MakeBatches = Callable[..., Batches]


def settings(model: GPTConfig, **sections: dict[str, Any]) -> RunConfig:
    plain: dict[str, dict[str, Any]] = {
        "training": {"batch_size": 8, "max_steps": 10, "clip_norm": 0.0},
        "schedule": {"name": "constant", "warmup": 0},
    }
    for name, values in sections.items():
        plain[name] = plain.get(name, {}) | values
    return RunConfig.model_validate({"model": model, **plain})


def make_stepper(config: RunConfig, **more: Any) -> Stepper:
    torch.manual_seed(11)
    return Stepper(GPT(config.model), config, 10, **more)


def gradients_of_the_update(stepper: Stepper) -> Gradients:
    """Filled, when the stepper steps, with the gradients that its optimizers get to see."""
    seen: Gradients = {}

    def look(*_: object) -> None:
        seen.update({n: p.grad.clone() for n, p in stepper.model.named_parameters() if p.grad is not None})

    stepper.optimizers[0].register_step_pre_hook(look)
    return seen


def weights_of(stepper: Stepper) -> Weights:
    return {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    assert not {name for name in found if not torch.equal(found[name], expected[name])}


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01)])
@pytest.mark.parametrize("micro_batch", [8, 4, 3, 2, 1])
def test_micro_batches_give_the_whole_batchs_loss_and_gradients(
    tiny: GPTConfig, make_batches: MakeBatches, micro_batch: int, smoothing: float, z_loss: float
) -> None:
    """Rows have 0 to 12 ignored targets, one row nothing else: a mean of micro-batch means would be another number."""
    batches = make_batches(tiny, ignored=lambda row: [0, 11, 3, 12, 7, 0, 12, 5][row])
    training = {"micro_batch": micro_batch, "label_smoothing": smoothing, "z_loss": z_loss}
    stepper = make_stepper(settings(tiny, training=training))
    inputs, targets = batches.rows(0, range(8))
    logits = stepper.model(inputs).flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), label_smoothing=smoothing)
    expected = expected + z_loss * logits.logsumexp(-1)[targets.flatten() != -100].square().mean()
    torch.autograd.backward(expected)
    wanted = {n: p.grad.clone() for n, p in stepper.model.named_parameters() if p.grad is not None}
    stepper.model.zero_grad()

    seen = gradients_of_the_update(stepper)
    result = stepper(0, batches)
    assert result.loss == pytest.approx(expected.item(), rel=1e-6)
    assert result.tokens == 8 * 12 - 50
    assert result.bad_tensor is None
    assert set(seen) == set(wanted)
    for name, gradient in seen.items():
        assert (gradient - wanted[name]).norm() <= 1e-6 * wanted[name].norm() + 1e-9, name


def test_gradients_do_not_leak_into_the_next_step(tiny: GPTConfig, make_batches: MakeBatches) -> None:
    config = settings(tiny, optimizer={"learning_rate": 1e-30})
    stepper = make_stepper(config)
    seen = gradients_of_the_update(stepper)
    stepper(0, make_batches(tiny))
    first = dict(seen)
    stepper(0, make_batches(tiny))
    assert_same(seen, first)
    assert all(p.grad is None for p in stepper.model.parameters())


@pytest.mark.parametrize("clip_norm", [0.0, 0.05, 1e6])
def test_clipping_is_its_formula_and_the_norm_is_from_before_it(
    tiny: GPTConfig, make_batches: MakeBatches, clip_norm: float
) -> None:
    raw = make_stepper(settings(tiny))
    wanted = gradients_of_the_update(raw)
    raw(0, make_batches(tiny))
    norm = sum(float(g.double().square().sum()) for g in wanted.values()) ** 0.5
    assert norm > 0.1

    stepper = make_stepper(settings(tiny, training={"clip_norm": clip_norm}))
    seen = gradients_of_the_update(stepper)
    result = stepper(0, make_batches(tiny))
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    factor = min(1.0, clip_norm / norm) if clip_norm else 1.0
    for name, gradient in seen.items():
        torch.testing.assert_close(gradient, wanted[name] * factor, rtol=1e-4, atol=1e-9)


# eps 1 makes AdamW's first step g/(|g|+1): it sees the gradients' size, which the usual eps hides
@pytest.mark.parametrize("eps", [1e-8, 1.0])
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_a_loss_scale_of_65536_changes_no_update(
    tiny: GPTConfig, make_batches: MakeBatches, eps: float, clip_norm: float
) -> None:
    """The seed's fault: it clipped at 0.5 while the gradients still carried the scale, and the loss stalled at 4.85."""
    config = settings(tiny, training={"clip_norm": clip_norm}, optimizer={"eps": eps, "learning_rate": 0.1})
    plain, scaled = make_stepper(config), make_stepper(config)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    for step in range(3):
        results = plain(step, make_batches(tiny)), scaled(step, make_batches(tiny))
        unscaled = replace(results[1], loss_scale=1.0)
        assert results[0] == unscaled, "loss and norm are reported unscaled"
        assert_same(weights_of(scaled), weights_of(plain))  # a power of two is exact
    assert results[0].grad_norm > 0.5, "or nothing was clipped"


def test_the_seeds_fault_would_be_seen(tiny: GPTConfig, make_batches: MakeBatches) -> None:
    """The test above has teeth: clipped at 0.5 before they are unscaled, all gradients together weigh 0.5/65536."""
    model, scaler = make_stepper(settings(tiny)).model, torch.amp.GradScaler("cpu", init_scale=65536.0)
    inputs, targets = make_batches(tiny).rows(0, range(8))
    torch.autograd.backward(scaler.scale(model(inputs, targets)))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    grads = torch.cat([p.grad.flatten() / 65536 for p in model.parameters() if p.grad is not None])
    assert grads.norm() < 1e-5


def test_fp16_trains_like_fp32(tiny: GPTConfig, make_batches: MakeBatches) -> None:
    losses = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        stepper = make_stepper(settings(tiny, training={"clip_norm": 0.5}), precision=dtype)
        losses[dtype] = [stepper(step, make_batches(tiny)).loss for step in range(10)]
        assert stepper.scaler.is_enabled() == (dtype == torch.float16)
    assert losses[torch.float32][-1] < losses[torch.float32][0] - 0.1
    assert losses[torch.float16] == pytest.approx(losses[torch.float32], abs=2e-3)
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], abs=2e-2)
    assert losses[torch.float16] != losses[torch.float32], "the products ran in fp16"


def poison_weight(stepper: Stepper) -> None:
    with torch.no_grad():
        stepper.model.transformer.h[1].get_submodule("mlp.c_fc").get_parameter("weight")[3, 4] = torch.nan


def poison_gradient(stepper: Stepper) -> None:
    bias = stepper.model.transformer.h[0].get_submodule("attn.c_proj").get_parameter("bias")
    bias.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[no-untyped-call]


def poison_loss(stepper: Stepper) -> None:
    """Inf in the number alone: its gradients are fine, and must not be used all the same."""
    op = TORCH_OPS.linear_cross_entropy
    stepper.model.ops = TORCH_OPS._replace(linear_cross_entropy=lambda *args: op(*args) + torch.inf)


POISONS = {
    "transformer.h.1.mlp.c_fc.weight": poison_weight,
    "gradient of transformer.h.0.attn.c_proj.bias": poison_gradient,
    "loss": poison_loss,
}


@pytest.mark.parametrize("name", POISONS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("scaled", [False, True])
def test_nothing_that_is_not_finite_reaches_weights_or_optimizer(
    tiny: GPTConfig, make_batches: MakeBatches, name: str, optimizer: str, scaled: bool
) -> None:
    config = settings(tiny, optimizer={"name": optimizer}, training={"clip_norm": 1.0}, schedule={"name": "cosine"})
    stepper = make_stepper(config)
    if scaled:
        stepper.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    stepper(0, make_batches(tiny))
    POISONS[name](stepper)
    weights, state = weights_of(stepper), {n: t.clone() for n, t in stepper.state()[1].items()}
    result = stepper(1, make_batches(tiny))
    assert result.bad_tensor == name
    after = weights_of(stepper)
    assert not {n for n in weights if not torch.equal(after[n].nan_to_num(), weights[n].nan_to_num())}
    assert_same(stepper.state()[1], state)
    assert all(p.grad is None for p in stepper.model.parameters()), "bad gradients must not meet the next step's"


def test_an_overflowing_loss_scale_is_halved_until_it_fits(tiny: GPTConfig, make_batches: MakeBatches) -> None:
    stepper = make_stepper(settings(tiny), precision=torch.float16)
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    weights = weights_of(stepper)
    assert str(stepper(0, make_batches(tiny)).bad_tensor).startswith("gradient of ")
    assert stepper.scaler.get_scale() == 2.0**23
    assert_same(weights_of(stepper), weights)
    results = [stepper(step, make_batches(tiny)) for step in range(1, 14)]
    assert results[-1].bad_tensor is None
    assert stepper.scaler.get_scale() < 2.0**23


class OneOf(Alone):
    """This process among `count` alike: every count of valid tokens is the same on all of them."""

    def sum(self, x: Tensor) -> Tensor:
        return x * self.count


def test_two_processes_average_to_the_gradient_of_one(tiny: GPTConfig, make_batches: MakeBatches) -> None:
    one = make_stepper(settings(tiny))
    wanted = gradients_of_the_update(one)
    one(0, make_batches(tiny))
    parts = []
    for rank in range(2):
        stepper = make_stepper(settings(tiny, training={"micro_batch": 2}), processes=OneOf(rank, 2))
        seen = gradients_of_the_update(stepper)
        assert stepper(0, make_batches(tiny)).tokens == 8 * 12
        parts.append(dict(seen))
    for name, gradient in wanted.items():
        mean = (parts[0][name] + parts[1][name]) / 2
        assert (mean - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name
        assert not torch.allclose(parts[0][name], parts[1][name], rtol=1e-3), "each had rows of its own"


def test_randomness_depends_on_seed_and_step_alone(tiny: GPTConfig, make_batches: MakeBatches) -> None:
    config = settings(tiny.model_copy(update={"dropout": 0.3}))
    losses = []
    for disturbance in (0, 1000):
        stepper = make_stepper(config)
        torch.rand(disturbance)  # what prints or samples may draw numbers
        losses.append([stepper(step, make_batches(tiny)).loss for step in (4, 5)])
    assert losses[0] == losses[1]
    other_seed = make_stepper(settings(config.model, training={"seed": 2}))
    assert other_seed(4, make_batches(tiny)).loss != losses[0][0], "torch's CPU generator reads 32 bits of a seed"
    other_rank = make_stepper(config, processes=OneOf(1, 1))
    assert other_rank(4, make_batches(tiny)).loss != losses[0][0]


def test_a_step_without_any_target_is_skipped(tiny: GPTConfig, make_batches: MakeBatches) -> None:
    for dtype in (torch.float32, torch.float16):
        stepper = make_stepper(settings(tiny), precision=dtype)
        weights = weights_of(stepper)
        result = stepper(0, make_batches(tiny, ignored=lambda row: 12))
        assert (result.tokens, result.bad_tensor) == (0, "loss")
        assert_same(weights_of(stepper), weights)


def test_the_rate_moves_once_an_optimizer_step_however_many_micro_batches(
    tiny: GPTConfig, make_batches: MakeBatches
) -> None:
    rates = []
    for micro_batch in (8, 1):
        config = settings(tiny, training={"micro_batch": micro_batch}, schedule={"name": "cosine", "warmup": 2})
        stepper = make_stepper(config)
        rates.append([stepper(step, make_batches(tiny)).learning_rate for step in range(10)])
    assert rates[0] == rates[1]
    assert rates[0][:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert rates[0][-1] < 0.2e-3

"""The micro-batch that fits, and the plan's arithmetic where it can be said in a line."""

import pytest

from smallgpt.application.memory_plan import (
    KernelBytes,
    MemoryPlan,
    even_splits,
    largest_micro_batch,
    plan_memory,
)
from smallgpt.domain.config import RunConfig
from smallgpt.domain.gpt import GPT

NOTHING = KernelBytes(0, 0, 0, 0, 0)
FP32 = 4  # bytes


def planned(micro_batch: int = 8, **sections: object) -> MemoryPlan:
    return plan_memory(RunConfig.model_validate(sections), micro_batch, FP32, NOTHING)


def test_even_splits_are_those_into_1_2_3_passes() -> None:
    assert even_splits(32) == [32, 16, 11, 8, 7, 6, 5, 4, 3, 2, 1]
    assert even_splits(7) == [7, 4, 3, 2, 1]
    assert even_splits(1) == [1]


@pytest.mark.parametrize(
    ("batch", "most", "chosen"),
    [
        (32, 99, 32),
        (32, 31, 16),
        (32, 1, 1),
        (32, 0, None),
        (31, 30, 16),  # a prime has no divisor but 1: two passes of 16 and 15
        (30, 14, 10),  # 10 + 10 + 10, not 8 + 8 + 8 + 6
        (22, 10, 8),  # 8 + 8 + 6: the next divisor, 2, would be eleven passes
    ],
)
def test_the_largest_micro_batch_is_a_divisor_unless_that_is_far_smaller(
    batch: int, most: int, chosen: int | None
) -> None:
    assert largest_micro_batch(batch, lambda size: size <= most) == chosen


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_and_optimizer_are_counted_to_the_byte(optimizer: str) -> None:
    config = RunConfig.model_validate({"optimizer": {"name": optimizer}})
    model = GPT(config.model)
    hidden = sum(p.numel() for name, p in model.named_parameters() if ".h." in name and p.dim() == 2)
    everything = model.n_parameters(positions=True)
    components = planned(32, optimizer={"name": optimizer}).components
    assert components["weights"] == 4 * everything
    assert components["optimizer"] == 8 * everything - (4 * hidden if optimizer == "muon" else 0)


def test_an_asynchronous_checkpoint_is_a_second_state_in_the_hosts_memory() -> None:
    config = RunConfig.model_validate({"checkpoint": {"asynchronous": True}})
    plan = plan_memory(config, 32, FP32, NOTHING)
    assert plan.components["checkpoint"] == plan.components["weights"] + plan.components["optimizer"]
    assert plan.peak == planned(32).peak + plan.components["checkpoint"]
    assert plan_memory(config, 32, FP32, NOTHING, on_host=False) == planned(32)


def test_the_peak_is_the_fullest_moment_not_the_sum_of_all() -> None:
    """With a single short sequence nothing outweighs the gradients of all weights, which meet in Muon's update."""
    config = RunConfig.model_validate(
        {"model": {"block_size": 8}, "training": {"batch_size": 1}, "optimizer": {"name": "muon"}}
    )
    plan = plan_memory(config, 1, FP32, NOTHING, evaluates=False)
    assert plan.moment == "optimizer"
    assert plan.components["gradients"] == plan.components["weights"]
    assert plan.components["update"] == 4 * 256 * 1024 * 16, "of four layers' widest matrices, 16 bytes a weight"


def test_more_sequences_and_layers_take_more_and_recomputing_takes_less() -> None:
    model = {"block_size": 256, "vocab_size": 512, "n_layer": 8}
    training = {"batch_size": 64}
    peaks = [planned(size, model=model, training=training).peak for size in (4, 8, 16, 32, 64)]
    assert peaks == sorted(peaks)
    deeper = planned(64, model=model | {"n_layer": 12}, training=training)
    assert deeper.peak > peaks[-1]
    again = planned(64, model=model, training=training | {"activation_checkpointing": True})
    assert again.peak < 0.5 * peaks[-1]


def test_of_frozen_parts_neither_gradients_nor_state_are_counted() -> None:
    """Of LoRA the updates alone, beside all the weights."""
    model = {"block_size": 8}
    config = RunConfig.model_validate({"model": model, "training": {"batch_size": 1}})
    everything, C, rank = GPT(config.model).n_parameters(positions=True), config.model.n_embd, 8
    updates = config.model.n_layer * rank * (4 + 2 + 5 + 5) * C
    plan = planned(1, model=model, training={"batch_size": 1, "lora_rank": rank})
    assert plan.components["weights"] == 4 * (everything + updates)
    assert plan.components["optimizer"] == 8 * updates

    tables = (config.model.vocab_size + config.model.block_size) * C
    training = {"batch_size": 1, "freeze": "embeddings"}
    frozen = plan_memory(
        RunConfig.model_validate({"model": model, "training": training}), 1, FP32, NOTHING, evaluates=False
    )
    assert frozen.components["optimizer"] == 8 * (everything - tables)
    assert frozen.components.get("gradients", 0) <= 4 * (everything - tables)

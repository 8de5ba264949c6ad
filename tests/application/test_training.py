"""The loop: what it learns, records and saves, when it looks, and when it gives up."""

from collections.abc import Callable
from dataclasses import replace
from math import isfinite, nan
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt.application import training
from smallgpt.application.step import Stepper
from smallgpt.application.training import Look, Loop, plan_steps
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.errors import NumericsError
from smallgpt.domain.flops import flops_per_token
from smallgpt.domain.gpt import GPT
from smallgpt.domain.metrics import Score

MakeLoop = Callable[..., Loop]
Record = Any
STEPS = 12


def settings(model: GPTConfig, **sections: dict[str, Any]) -> RunConfig:
    """12 steps; checkpoints at 4, 8, 12; validation at 0, 3, 6, 9, at checkpoints and at the end; samples at 0, 5, 10, 12."""
    plain: dict[str, dict[str, Any]] = {
        "training": {"batch_size": 4, "max_steps": STEPS, "max_skipped": 3},
        "evaluation": {"every": 3, "sample_every": 5},
        "checkpoint": {"every": 4},
        "optimizer": {"learning_rate": 0.01},
    }
    for name, values in sections.items():
        plain[name] = plain.get(name, {}) | values
    return RunConfig.model_validate({"model": model, **plain})


# fp32, one thread. After a change that is meant to change them: run the test and copy the list that it shows.
GOLDEN = [4.144353, 4.063956, 4.038382, 3.936572, 3.867141, 3.834616, 3.729420, 3.604513, 3.565861, 3.506065]


def test_ten_recorded_losses(tiny: GPTConfig, make_loop: MakeLoop, record: Record) -> None:
    config = settings(tiny, training={"max_steps": 10, "batch_size": 8, "micro_batch": 4, "label_smoothing": 0.1})
    make_loop(config, record).run()
    losses = [round(event["loss"], 6) for event in record.of("train")]
    assert losses == pytest.approx(GOLDEN, rel=1e-4), str(losses)


STORY = "Once upon a time there was a small fox. It had a red hat, and it saw the sea. The end."


class OneStory:
    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([list(STORY.encode())]).expand(len(rows), -1)
        return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_one_story_by_heart(make_loop: MakeLoop, record: Record, optimizer: str) -> None:
    model = GPTConfig(block_size=len(STORY), vocab_size=128, n_layer=2, n_head=2, n_embd=64, dropout=0.0)
    config = settings(
        model,
        training={"max_steps": 80, "batch_size": 1},
        optimizer={"name": optimizer, "learning_rate": 5e-3},
        evaluation={"every": 0, "sample_every": 0},
        checkpoint={"every": 0},
    )
    make_loop.batches = lambda config: OneStory()  # type: ignore[attr-defined]
    loop = make_loop(config, record)
    loop.run()
    losses = [event["loss"] for event in record.of("train")]
    assert losses[0] > 4
    assert losses[-1] < 0.1
    prompt = torch.tensor([list(b"Once ")])
    written = loop.stepper.model.eval().generate(prompt, len(STORY) - 5, temperature=0)
    assert bytes(written[0].tolist()).decode() == STORY


def test_it_looks_and_saves_when_it_is_due(tiny: GPTConfig, make_loop: MakeLoop, record: Record) -> None:
    outcome = make_loop(settings(tiny), record).run()
    assert (outcome.step, outcome.reason) == (STEPS, "finished")
    assert [e["step"] for e in record.of("train")] == list(range(1, STEPS + 1))
    assert [e["step"] for e in record.of("validation") if not e["final"]] == [0, 3, 4, 6, 8, 9, STEPS]
    assert [e["step"] for e in record.of("validation") if e["final"]] == [STEPS]
    assert [e["step"] for e in record.of("sample")] == [0, 5, 10, STEPS]
    assert [state.step for state in record.states] == [4, 8, 12]
    assert record.events[-1]["event"] == "end"
    assert outcome.final is not None
    assert outcome.final.nats_per_token == record.of("validation")[-1]["nats_per_token"]


def test_a_run_that_saves_and_looks_only_at_its_end(tiny: GPTConfig, make_loop: MakeLoop, record: Record) -> None:
    config = settings(tiny, evaluation={"every": 0, "sample_every": 0}, checkpoint={"every": 0})
    make_loop(config, record).run()
    assert [state.step for state in record.states] == [STEPS]
    assert [(e["step"], e["final"]) for e in record.of("validation")] == [(STEPS, False), (STEPS, True)]
    assert record.of("sample") == []
    assert record.best == [STEPS]


def test_looking_changes_nothing(tiny: GPTConfig, make_loop: MakeLoop, record: Record) -> None:
    model = tiny.model_copy(update={"dropout": 0.2})
    often, never = settings(model, evaluation={"every": 1, "sample_every": 1}), settings(model, evaluation={"every": 0})
    looked, blind = make_loop(often, record), make_loop(never, type(record)())
    looked.run()
    blind.run()
    for (name, p), (_, q) in zip(
        looked.stepper.model.named_parameters(), blind.stepper.model.named_parameters(), strict=True
    ):
        assert torch.equal(p, q), name
    assert looked.stepper.model.training


def test_a_training_event_says_what_the_step_did(tiny: GPTConfig, make_loop: MakeLoop, record: Record) -> None:
    config = settings(tiny, schedule={"name": "linear", "warmup": 0, "floor": 0})
    make_loop(config, record).run()
    for event in record.of("train"):
        step = event["step"]
        assert event["tokens"] == step * 4 * 12
        assert event["learning_rate"] == pytest.approx(0.01 * (1 - (step - 1) / STEPS))
        assert isfinite(event["loss"])
        assert event["grad_norm"] > 0
        assert event["memory_bytes"] == 123
        assert event["mfu"] == pytest.approx(event["tokens_per_second"] * flops_per_token(tiny) / 1e9)
        assert "loss_scale" not in event
    seconds = [event["seconds"] for event in record.of("train")]
    assert seconds == sorted(seconds)


def test_the_time_left_is_by_the_pace_of_steps_and_not_by_what_came_before_them(
    tiny: GPTConfig, make_loop: MakeLoop, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def passing(seconds: float, action: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **settings: Any) -> Any:
            clock[0] += seconds
            return action(*arguments, **settings)

        return slow

    monkeypatch.setattr("smallgpt.application.training.time.perf_counter", lambda: clock[0])
    config = settings(tiny, evaluation={"every": 4}, checkpoint={"every": 0})
    loop = make_loop(config, record)
    loop.look = replace(loop.look, evaluate=passing(100.0, loop.look.evaluate))
    monkeypatch.setattr(loop.stepper, "start", passing(2.0, loop.stepper.start))
    loop.run()
    left = {event["step"]: event["eta_seconds"] for event in record.of("train")}
    assert left[1] == 2 * (STEPS - 1)  # the pass before it took 100
    assert left[4] == 2 * (STEPS - 4)
    assert left[5] == (2 * 4 + 100) / 4 * (STEPS - 5)  # a pass among the steps will come again


@pytest.mark.parametrize("extra", ["label_smoothing", "z_loss"])
def test_label_smoothing_and_z_loss_are_in_the_training_loss_and_in_no_validation(
    tiny: GPTConfig, make_loop: MakeLoop, record: Record, extra: str
) -> None:
    smooth = settings(tiny, training={extra: 0.5, "max_steps": 1}, optimizer={"learning_rate": 1e-30})
    plain = settings(tiny, training={"max_steps": 1}, optimizer={"learning_rate": 1e-30})
    other = type(record)()
    model = GPT(tiny)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(100)  # confident predictions: smoothing costs them something
    make_loop(smooth, record, model=model).run()
    make_loop(plain, other, model=model).run()
    assert abs(record.of("train")[0]["loss"] - other.of("train")[0]["loss"]) > 0.1
    assert [e["nats_per_token"] for e in record.of("validation")] == [
        e["nats_per_token"] for e in other.of("validation")
    ]


def poisoned(loop: Loop, when: Callable[[int], bool], number: float = nan) -> None:
    """Make the gradient of one bias `number` at the steps (counted from 0) for which when() is true."""
    bias = loop.stepper.model.transformer.h[0].get_submodule("attn.c_proj").get_parameter("bias")
    bias.register_hook(lambda gradient: gradient * number if when(loop.step) else gradient)  # type: ignore[no-untyped-call]


def test_a_bad_step_is_skipped_counted_and_shown(tiny: GPTConfig, make_loop: MakeLoop, record: Record) -> None:
    loop = make_loop(settings(tiny), record)
    poisoned(loop, lambda step: step in (2, 5, 6))
    assert loop.run().reason == "finished"
    assert loop.skipped == 3
    name = "gradient of transformer.h.0.attn.c_proj.bias"
    assert [(e["step"], e["tensor"], e["in_a_row"]) for e in record.of("skip")] == [
        (3, name, 1),
        (6, name, 1),
        (7, name, 2),
    ]
    assert all(p.isfinite().all() for p in loop.stepper.model.parameters())


def test_bad_steps_in_a_row_end_the_run_and_say_which_checkpoint_is_good(
    tiny: GPTConfig, make_loop: MakeLoop, record: Record
) -> None:
    loop = make_loop(settings(tiny), record)
    poisoned(loop, lambda step: step >= 5)
    with pytest.raises(
        NumericsError, match=r"3 steps in a row .* step 8; .*: gradient of .*bias.\n.*memory/4"
    ) as caught:
        loop.run()
    assert caught.value.exit_code == 5
    weights = loop.stepper.model.state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    clean = make_loop(settings(tiny), type(record)(), stop_at=5)
    clean.run()
    for name, tensor in clean.stepper.model.state_dict().items():
        assert torch.equal(weights[name], tensor), "bad steps left a trace"


def break_weights(loop: Loop, at: int) -> Callable[[], bool]:
    def should_stop() -> bool:
        if loop.step == at:
            with torch.no_grad():
                loop.stepper.model.transformer.wpe.weight[2, 3] = torch.inf
        return False

    return should_stop


def test_broken_weights_never_replace_a_good_checkpoint(tiny: GPTConfig, make_loop: MakeLoop, record: Record) -> None:
    """With a checkpoint a step, ten bad steps would push every good one out."""
    loop = make_loop(settings(tiny, checkpoint={"every": 1}), record)
    loop.should_stop = break_weights(loop, 5)
    with pytest.raises(NumericsError, match=r"transformer\.wpe\.weight\.\nLast good checkpoint: memory/5"):
        loop.run()
    assert [state.step for state in record.states] == [1, 2, 3, 4, 5]
    assert all(tensor.isfinite().all() for state in record.states for tensor in state.weights.values())
    assert set(record.best) <= {state.step for state in record.states}


def test_a_resumed_run_that_fails_at_once_knows_its_good_checkpoint(
    tiny: GPTConfig, make_loop: MakeLoop, record: Record
) -> None:
    make_loop(settings(tiny), record, stop_at=4).run()
    loop = make_loop(settings(tiny), record, state=record.states[-1])
    poisoned(loop, lambda step: True)
    with pytest.raises(NumericsError, match=r"Last good checkpoint: .*4\."):
        loop.run()


def looks(nats: dict[int, float], loop: list[Loop]) -> Look:
    def score(model: GPT, autocast: object, whole: bool) -> Score:
        return Score(100 * nats[loop[0].step], 100, 100)

    return Look(score, lambda model, step: {})


@pytest.mark.parametrize(
    ("nats", "best"),
    [
        ({4: 2.0, 8: 3.0, 12: 2.5}, [4]),
        ({4: 3.0, 8: 2.0, 12: 1.0}, [4, 8, 12]),
        ({4: nan, 8: 3.0, 12: 4.0}, [8]),  # a pass that went wrong is not the one to beat
        ({4: 3.0, 8: nan, 12: nan}, [4]),
    ],
)
def test_the_best_checkpoint_is_marked(
    tiny: GPTConfig, make_loop: MakeLoop, record: Record, nats: dict[int, float], best: list[int]
) -> None:
    config = settings(tiny, evaluation={"every": 0, "sample_every": 0})
    holder: list[Loop] = []
    holder.append(make_loop(config, record, look=looks(nats, holder)))
    holder[0].run()
    assert record.best == best


def fake_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_a_timed_run_plans_its_steps_and_starts_afresh(
    tiny: GPTConfig, make_batches: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = fake_clock(monkeypatch)
    config = settings(tiny, evaluation={"every": 0.25, "sample_every": 0.5}).model_copy(
        update={"training": settings(tiny).training.model_copy(update={"max_steps": None, "max_minutes": 1})}
    )
    model = GPT(tiny)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    class Slow:
        def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
            now[0] += 5.0 if step == 0 else 0.1  # the first step allocates and compiles
            result: tuple[Tensor, Tensor] = make_batches(tiny).rows(step, rows)
            return result

    def score(model: GPT, autocast: object, whole: bool) -> Score:
        now[0] += 2.0
        return Score(1.0, 1, 1)

    def sample(model: GPT, step: int) -> dict[str, Any]:
        now[0] += 1.0
        return {}

    steps, words = plan_steps(Stepper(model, config, 1000), Slow(), Look(score, sample), 1.0, 100.0)
    spent = now[0] - 100.0
    # five passes of 2 s and three samples of 1 s come up in the run; 2 % are left over
    assert steps == pytest.approx(0.98 * (60 - spent - 5 * 2 - 3 * 1) / 0.1, abs=1.5)
    assert "100 ms a step" in words
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_machine_too_slow_for_the_budget_still_takes_a_step(
    tiny: GPTConfig, make_batches: Callable[..., Any], make_loop: MakeLoop, record: Record
) -> None:
    loop = make_loop(settings(tiny), record)
    steps, _ = plan_steps(loop.stepper, make_batches(tiny), loop.look, 1e-6, 0.0)
    assert steps == 1

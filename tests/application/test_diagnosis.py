"""A healthy run has no finding; each fault put into it gives exactly its own."""

from collections.abc import Callable
from math import cos, nan, pi
from typing import Any

import pytest

from smallgpt.application.diagnosis import diagnose
from smallgpt.application.findings import Finding, standing
from smallgpt.domain.config import RunConfig

Event = dict[str, Any]
STEPS = 400
BASELINES = {"uniform": 7.62, "unigram": 5.5, "bigram": 3.8, "trigram": 3.4, "fitted_tokens": 1000}


class Run:
    """A healthy run of 400 steps, every 100 validated, with data for two epochs; tests put one fault into it."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {
            "model": {"block_size": 128, "vocab_size": 2048},
            "training": {"max_steps": STEPS, "clip_norm": 1.0, "precision": "bf16"},
        }
        self.manifest: dict[str, Any] | None = {
            "vocab_size": 2048,
            "tokenizer": {"kind": "bpe", "end_of_text": 0},
            "splits": {
                "train": {"tokens": 800_000, "documents": 4000, "longest_document": 611},
                "validation": {"tokens": 40_000, "documents": 200, "longest_document": 500},
            },
            "baselines": BASELINES,
        }
        self.train = [self._train(step) for step in range(1, STEPS + 1)]
        self.validations: list[Event] = [
            {
                "event": "validation",
                "step": step,
                "nats_per_token": self.train[step - 1]["loss"] + 0.05,
                "tokens": 10_000,
            }
            for step in range(100, STEPS + 1, 100)
        ]
        self.start: Event = {
            "event": "start",
            "step": 0,
            "precision": "bf16",
            "planned_steps": STEPS,
            "vocab_size": 2048,
            "baselines": BASELINES,
        }
        self.skips: list[Event] = []
        self.checkpoints: list[Event] = [{"event": "checkpoint", "step": step} for step in (100, 300, 400)]
        self.end: Event | None = {"event": "end", "step": STEPS, "seconds": 100.0, "reason": "finished"}

    @staticmethod
    def _train(step: int) -> Event:
        wobble = 0.05 * (-1) ** step
        return {
            "event": "train",
            "step": step,
            "loss": 2.0 + 5.6 * 0.98**step + wobble,
            "learning_rate": 1e-3 * (0.55 + 0.45 * cos(pi * step / STEPS)),
            "grad_norm": 0.7 + wobble,
            "tokens": step * 4096,
            "tokens_per_second": 20_000.0 + 100 * wobble,
        }

    def diagnose(self) -> list[Finding]:
        ends = [self.end] if self.end else []
        events = [self.start, *self.train, *self.validations, *self.checkpoints, *self.skips, *ends]
        return diagnose(RunConfig.model_validate(self.config), events, self.manifest)

    def splits(self) -> dict[str, Any]:
        assert self.manifest is not None
        splits: dict[str, Any] = self.manifest["splits"]
        return splits


def test_a_healthy_run_has_no_finding() -> None:
    assert Run().diagnose() == []


def constant_rate(run: Run) -> None:
    run.config["schedule"] = {"name": "constant"}


def restart_longer_than_the_run(run: Run) -> None:
    """The seed's: a cycle counted in micro-steps."""
    run.config["schedule"] = {"name": "warm-restarts", "restart": 10_000, "warmup": 0}


def flat_rates(run: Run) -> None:
    for event in run.train:
        event["learning_rate"] = 1e-3


def clipped(run: Run) -> None:
    for event in run.train:
        event["grad_norm"] += 3


def fp16_skips(run: Run) -> None:
    run.start["precision"] = "fp16"
    for event in run.train:
        event["loss_scale"] = 1024.0
    run.skips = [{"event": "skip", "step": step, "tensor": "lm_head", "in_a_row": 1} for step in range(5, 50, 3)]


def scale_collapses(run: Run) -> None:
    run.start["precision"] = "fp16"
    for event in run.train:
        event["loss_scale"] = 65536.0 if event["step"] < 300 else 1.0


def nan_losses(run: Run) -> None:
    run.train[200]["loss"] = nan


def null_losses(run: Run) -> None:
    run.train[200]["loss"] = None


def bf16_skips(run: Run) -> None:
    run.skips = [{"event": "skip", "step": 40, "tensor": "transformer.wte.weight", "in_a_row": 1}]


def gave_up(run: Run) -> None:
    run.start["precision"] = "fp16"
    run.train, run.validations, run.end = run.train[:10], [], None
    run.skips = [{"event": "skip", "step": step, "tensor": "loss", "in_a_row": step} for step in range(1, 11)]
    run.start["baselines"] = run.manifest = None


def diverged(run: Run) -> None:
    for event in run.train[300:]:
        event["loss"] *= 1.5
    run.validations = run.validations[:3]


def spiking(run: Run) -> None:
    run.train[250]["loss"] = 4.0


def over_fitted(run: Run) -> None:
    for event, nats in zip(run.validations, (3.0, 2.5, 2.7, 2.9), strict=True):
        event["nats_per_token"] = nats


def above_bigram(run: Run) -> None:
    run.validations[-1].update(nats_per_token=4.5, tokens=40_000, final=True)


def above_unigram(run: Run) -> None:
    run.validations[-1].update(nats_per_token=5.6, tokens=40_000, final=True)


def above_uniform(run: Run) -> None:
    run.validations[-1].update(nats_per_token=7.7, tokens=40_000, final=True)


def train_loss_above_bigram(run: Run) -> None:
    run.validations = []
    for event in run.train:
        event["loss"] += 2.5


def interrupted(run: Run) -> None:
    assert run.end is not None
    run.train = run.train[:350]
    run.validations = run.validations[:3]
    run.end["reason"] = "interrupted"


def killed(run: Run) -> None:
    run.train = run.train[:350]
    run.validations = run.validations[:3]
    run.end = None


def killed_before_a_checkpoint(run: Run) -> None:
    killed(run)
    run.checkpoints = []


def stopped_before_a_validation(run: Run) -> None:
    """What is known of the model is its training loss: the only pass was over random weights."""
    interrupted(run)
    run.validations = [{"event": "validation", "step": 0, "nats_per_token": 8.1, "tokens": 10_000}]


def slowing(run: Run) -> None:
    for event in run.train[200:]:
        event["tokens_per_second"] *= 0.5


def short(run: Run) -> None:
    run.train, run.validations = run.train[:5], []
    run.start["baselines"] = run.manifest = None


def smoothed(run: Run) -> None:
    run.config["training"]["label_smoothing"] = 0.1


def cut_at_the_block(run: Run) -> None:
    run.splits()["train"].update(longest_document=128, documents=7000)


def cut_alike(run: Run) -> None:
    assert run.manifest is not None
    run.manifest["tokenizer"]["end_of_text"] = None
    run.splits()["train"].update(longest_document=200, documents=4000)


def no_end_of_text(run: Run) -> None:
    assert run.manifest is not None
    run.manifest["tokenizer"]["end_of_text"] = None


def adopted_without_documents(run: Run) -> None:
    assert run.manifest is not None
    run.manifest["tokenizer"] = None
    run.splits()["train"].update(documents=None, longest_document=None)


def one_document(run: Run) -> None:
    run.splits()["train"].update(documents=1, longest_document=800_000)


def no_validation(run: Run) -> None:
    del run.splits()["validation"]


def validation_under_a_block(run: Run) -> None:
    run.splits()["validation"]["tokens"] = 100


def validation_under_ten_blocks(run: Run) -> None:
    run.splits()["validation"]["tokens"] = 1000


def long_documents(run: Run) -> None:
    run.splits()["train"].update(documents=1000, longest_document=4000)


def under_an_epoch(run: Run) -> None:
    run.splits()["train"].update(tokens=8_000_000, documents=40_000)


def many_epochs(run: Run) -> None:
    run.splits()["train"].update(tokens=40_000, documents=200)


def padded(run: Run) -> None:
    run.config["model"]["vocab_size"] = 50304


FAULTS: list[tuple[Callable[[Run], None], str, str, list[str], str]] = [
    (constant_rate, "warning", "never decays", ["constant"], "--schedule.name"),
    (restart_longer_than_the_run, "problem", "never decays", ["10,000", "400", "4%"], "--schedule.restart"),
    (flat_rates, "warning", "never decays", ["1.0e-03", "100%"], "--schedule.floor"),
    (clipped, "warning", "clipped", ["400 of 400", "3.7"], "--training.clip-norm"),
    (fp16_skips, "warning", "loss scaler", ["15 steps", "4%"], "--training.precision"),
    (scale_collapses, "problem", "loss scaler", ["65,536", "to 1."], "--training.precision"),
    (nan_losses, "problem", "not finite", ["1 of 400"], "--optimizer.learning-rate"),
    (null_losses, "problem", "not finite", ["1 of 400"], "--optimizer.learning-rate"),
    (bf16_skips, "problem", "not finite", ["transformer.wte.weight", "step 40"], "--optimizer.learning-rate"),
    (gave_up, "problem", "not finite", ["10 in a row", "gave up"], "--optimizer.learning-rate"),
    (diverged, "problem", "diverged", ["1.0e-03"], "--optimizer.learning-rate"),
    (spiking, "warning", "spikes", ["1 in 400", "step 251", "4.00"], "--optimizer.learning-rate"),
    (over_fitted, "problem", "over-fits", ["2.500 (step 200", "2.900 (step 400"], "--training.max-steps"),
    (above_bigram, "warning", "bigram", ["4.50", "3.80"], "--training.max-steps"),
    (above_unigram, "problem", "not learning", ["5.60", "below the uniform line"], "--optimizer.learning-rate"),
    (above_uniform, "problem", "not learning", ["7.70", "guessing"], "--optimizer.learning-rate"),
    (train_loss_above_bigram, "warning", "bigram", ["training loss"], "--training.max-steps"),
    (interrupted, "warning", "did not finish", ["interrupted", "350 of 400"], "--resume"),
    (killed, "warning", "did not finish", ["killed", "350 of 400"], "--resume"),
    (killed_before_a_checkpoint, "warning", "did not finish", ["killed", "350 of 400"], "--checkpoint.every"),
    (stopped_before_a_validation, "warning", "did not finish", ["interrupted", "350 of 400"], "--resume"),
    (slowing, "warning", "slower", ["20,000", "10,000", "50%"], "--training.threads"),
    (short, "note", "too short", ["is 5;"], "--training.max-steps"),
    (smoothed, "note", "label smoothing", ["0.1", "2,048", "1.09"], "--training.label-smoothing"),
    (cut_at_the_block, "problem", "cut", ["7,000 documents", "128 tokens"], "smallgpt prepare"),
    (no_end_of_text, "warning", "end-of-text", ["no end-of-text token is known"], "smallgpt prepare"),
    (adopted_without_documents, "warning", "end-of-text", ["0 separated documents"], "smallgpt prepare"),
    (one_document, "note", "end-of-text", ["1 separated"], "smallgpt prepare"),
    (no_validation, "problem", "no validation split", [], "--model.block-size"),
    (validation_under_a_block, "problem", "smaller than one block", ["100 tokens", "128"], "--model.block-size"),
    (validation_under_ten_blocks, "warning", "noisy", ["1,000 tokens"], "--model.block-size"),
    (long_documents, "note", "longer than two blocks", ["800", "128"], "--model.block-size"),
    (under_an_epoch, "note", "shorter than one epoch", ["0.2 epochs"], "--training.max-steps"),
    (many_epochs, "note", "many times", ["41 epochs"], "--model.dropout"),
    (padded, "note", "never used", ["48,256 rows", "96%"], "--model.vocab-size"),
]


@pytest.mark.parametrize(
    ("fault", "severity", "title", "numbers", "flag"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS]
)
def test_a_fault_gives_exactly_its_finding(
    fault: Callable[[Run], None], severity: str, title: str, numbers: list[str], flag: str
) -> None:
    run = Run()
    fault(run)
    findings = run.diagnose()
    assert len(findings) == 1, findings
    (finding,) = findings
    assert finding.severity == severity
    assert title in finding.title
    assert [words for words in numbers if words not in finding.evidence] == []
    assert flag in finding.remedy


def test_documents_of_one_length_without_end_of_text_are_two_faults() -> None:
    run = Run()
    cut_alike(run)
    assert [finding.title for finding in run.diagnose()] == [
        "Documents look cut",
        "There is no end-of-text between documents",
    ]


def test_clipping_that_is_never_or_seldom_reached_is_fine() -> None:
    run = Run()
    for event in run.train[:300]:
        event["grad_norm"] = 5.0
    assert run.diagnose() == []


def test_a_few_skips_while_the_fp16_scale_is_found_are_fine() -> None:
    run = Run()
    fp16_skips(run)
    run.skips = run.skips[:4]
    assert run.diagnose() == []


def test_the_final_pass_over_more_text_is_not_taken_for_over_fitting() -> None:
    run = Run()
    last = run.validations[-1]
    run.validations.append(dict(last, nats_per_token=last["nats_per_token"] + 0.5, tokens=40_000, final=True))
    assert run.diagnose() == []


def test_an_over_fitted_run_is_told_which_checkpoint_is_its_best() -> None:
    run = Run()
    over_fitted(run)  # its best pass, after step 200, was between two saves
    (finding,) = run.diagnose()
    assert "Use the checkpoint of step 300 (2.700), which is marked as best" in finding.remedy
    run.checkpoints = []
    (finding,) = run.diagnose()
    assert finding.remedy.startswith("No checkpoint was judged")


def test_steps_that_a_resume_did_again_count_once() -> None:
    run = Run()
    run.train = run.train[:210] + run.train[200:]
    assert run.diagnose() == []


def test_without_its_data_a_run_is_judged_by_what_it_wrote() -> None:
    run = Run()
    run.manifest = None
    assert run.diagnose() == []


def test_problems_come_first() -> None:
    run = Run()
    padded(run)
    clipped(run)
    over_fitted(run)
    assert [finding.severity for finding in run.diagnose()] == ["problem", "warning", "note"]


@pytest.mark.parametrize("events", [[], [{"event": "start", "step": 0}]])
def test_a_run_that_wrote_nothing_can_be_diagnosed(events: list[Event]) -> None:
    assert [finding.title for finding in diagnose(RunConfig(), events, None)] == (
        ["The run did not finish"] if events else []
    )


def test_standing_names_the_strongest_line_that_is_beaten() -> None:
    assert standing(2.0, BASELINES).startswith("below the trigram line (3.40)")
    assert standing(3.6, BASELINES).startswith("below the bigram line (3.80)")
    assert standing(9.0, BASELINES).startswith("not below the uniform line")
    assert standing(2.0, {}) == "no n-gram lines to compare with"

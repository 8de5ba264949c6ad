"""Checks on how a run went: the numbers that it wrote while it trained."""

from collections.abc import Callable
from math import isfinite, log
from statistics import fmean, median

from smallgpt.application.findings import Finding, RunRecord, number, standing
from smallgpt.domain.config import steps_of

ENOUGH_STEPS = 20
"""Shorter runs say nothing about rates, clipping or trends."""


def stopped_early(run: RunRecord) -> Finding | None:
    if run.finished or not run.events or _gave_up(run):
        return None
    ends = run.of_kind("end")
    was = (
        "was interrupted" if ends and ends[-1].get("reason") == "interrupted" else "has no end: it runs, or was killed"
    )
    return Finding(
        "warning",
        "The run did not finish",
        f"It {was} at step {run.steps_done:,} of {run.steps_planned:,}; the learning rate had not come down yet.",
        "Continue it with `smallgpt train --resume RUN`."
        if run.of_kind("checkpoint")
        else "It has no checkpoint yet: if it was killed, train it anew; a smaller --checkpoint.every loses less.",
    )


def too_short(run: RunRecord) -> Finding | None:
    if not run.finished or run.steps_done >= ENOUGH_STEPS:
        return None
    return Finding(
        "note",
        "The run is too short to be judged",
        f"Its length is {run.steps_done}; rates, clipping and trends are looked at from {ENOUGH_STEPS} steps on.",
        "Train longer: --training.max-steps or --training.max-minutes.",
    )


def not_finite(run: RunRecord) -> Finding | None:
    """Under fp16 the scaler's own skipping is judged by `scaler_skips`; a stop for good is judged here."""
    skips = run.of_kind("skip")
    bad_losses = sum(not isfinite(loss) for loss in run.losses)
    in_a_row = _skips_in_a_row(run)
    if not _gave_up(run) and not bad_losses and (not skips or _is_fp16(run)):
        return None
    first = f", the first one in {skips[0].get('tensor')} at step {skips[0]['step']:,}" if skips else ""
    steps = len({event["step"] for event in (*run.train, *skips)})
    return Finding(
        "problem",
        "Losses or gradients were not finite",
        f"{len(skips) or bad_losses:,} of {steps:,} steps were not finite{first}; {in_a_row} in a row at worst"
        f"{', and the run gave up' if _gave_up(run) else ''}.",
        "Lower --optimizer.learning-rate, lengthen --schedule.warmup, or use --training.precision fp32.",
    )


def scaler_skips(run: RunRecord) -> Finding | None:
    """Some skips are how a loss scale is found: one in fifty steps is normal, a scale near 1 never is."""
    if not _is_fp16(run) or _gave_up(run) or len(run.train) < ENOUGH_STEPS:
        return None
    skipped = len({skip["step"] for skip in run.of_kind("skip")})
    share = skipped / len({event["step"] for event in (*run.train, *run.of_kind("skip"))})
    scales = [number(event, "loss_scale") for event in run.train if event.get("loss_scale") is not None]
    collapsed = bool(scales) and scales[-1] <= 16 and scales[-1] < scales[0]
    if not collapsed and (share <= 0.02 or skipped < 5):
        return None
    scale = f" The loss scale went from {scales[0]:,.0f} to {scales[-1]:g}." if scales else ""
    return Finding(
        "problem" if collapsed or share > 0.1 else "warning",
        "The loss scaler keeps skipping steps",
        f"{skipped:,} steps ({share:.0%}) were skipped because fp16 gradients overflowed.{scale}",
        "Use --training.precision bf16 or fp32, or lower --optimizer.learning-rate.",
    )


def rate_never_decays(run: RunRecord) -> Finding | None:
    schedule, planned = run.config.schedule, run.steps_planned
    if planned < ENOUGH_STEPS:
        return None
    rates = [number(event, "learning_rate") for event in run.train]
    if schedule.name == "constant":
        evidence = f"schedule.name is constant: the rate stays at {max(rates, default=0):.1e} to the end."
        return Finding("warning", "The learning rate never decays", evidence, "Use --schedule.name cosine.")
    after_warmup = planned - steps_of(schedule.warmup, planned)
    cycle = steps_of(schedule.restart, after_warmup)
    if schedule.name == "warm-restarts" and cycle > after_warmup:
        return Finding(
            "problem",
            "The learning rate never decays",
            f"One cosine cycle is {cycle:,} optimizer steps, the run has {after_warmup:,} after its warm-up:"
            f" only {after_warmup / cycle:.0%} of the decay takes place.",
            f"Set --schedule.restart to at most {after_warmup} steps, or to a share of the run such as 0.25.",
        )
    if not run.finished or len(rates) < ENOUGH_STEPS:
        return None
    peak = max(rates)
    lowest = min(rates[rates.index(peak) :])
    if lowest <= 0.5 * peak:
        return None
    return Finding(
        "warning",
        "The learning rate never decays",
        f"Measured: the peak was {peak:.1e}, the lowest rate after it {lowest:.1e} ({lowest / peak:.0%}).",
        "Lower --schedule.floor (0.1 is usual) and count the schedule's lengths in optimizer steps.",
    )


def always_clipped(run: RunRecord) -> Finding | None:
    """Clipping that is never reached is fine; clipping that never rests is a second, hidden learning rate."""
    clip = run.config.training.clip_norm
    norms = [norm for event in run.train if isfinite(norm := number(event, "grad_norm"))]
    if clip == 0 or len(norms) < ENOUGH_STEPS:
        return None
    clipped = sum(norm > clip for norm in norms)
    if clipped < 0.9 * len(norms):
        return None
    return Finding(
        "warning",
        "The gradient is clipped at every step",
        f"{clipped:,} of {len(norms):,} steps ({clipped / len(norms):.0%}) had a gradient norm above {clip:g};"
        f" the median norm is {median(norms):.2g}.",
        f"Raise --training.clip-norm to about {2 * median(norms):.2g}, so that it only catches outliers.",
    )


def diverged(run: RunRecord) -> Finding | None:
    """Medians of windows, so that a single spike is not taken for divergence."""
    losses = [(event["step"], loss) for event, loss in zip(run.train, run.losses, strict=True) if isfinite(loss)]
    if len(losses) < 2 * ENOUGH_STEPS:
        return None
    width = max(10, len(losses) // 50)
    windows = [losses[at : at + width] for at in range(0, len(losses) - width + 1, width)] + [losses[-width:]]
    best = min(windows, key=lambda window: median(loss for _, loss in window))
    lowest, last = (median(loss for _, loss in window) for window in (best, windows[-1]))
    if last <= 1.1 * lowest:
        return None
    return Finding(
        "problem",
        "The loss diverged from its best: the learning rate is too high",
        f"The training loss was {lowest:.3f} around step {best[0][0]:,} and is {last:.3f} at the end"
        f" (peak learning rate {max(number(event, 'learning_rate') for event in run.train):.1e}).",
        "Lower --optimizer.learning-rate (try a third of it) or lengthen --schedule.warmup.",
    )


def loss_spikes(run: RunRecord) -> Finding | None:
    """A spike stands a fifth, and six median deviations, above the twenty steps before it, and goes away again."""
    losses = run.losses
    spikes: list[tuple[float, int]] = []
    for at in range(ENOUGH_STEPS, len(losses)):
        loss, before = losses[at], losses[at - 1]
        if not loss > 1.2 * before:  # cheap, and false for NaN: most steps end here
            continue
        window = losses[at - ENOUGH_STEPS : at]
        centre = median(window)
        deviation = median(abs(value - centre) for value in window)
        stays = median(losses[at : at + ENOUGH_STEPS]) > 1.2 * centre
        if loss > 1.2 * centre and loss > centre + 6 * deviation and not stays:
            spikes.append((loss / centre, at))
    if not spikes:
        return None
    height, at = max(spikes)
    return Finding(
        "warning",
        "The training loss has spikes",
        f"{len(spikes)} in {len(losses):,} steps; the highest at step {run.train[at]['step']:,}: {losses[at]:.2f},"
        f" {height:.1f} times the steps before it.",
        "Lower --optimizer.learning-rate or --training.clip-norm, or look at the data of that step.",
    )


def over_fitting(run: RunRecord) -> Finding | None:
    passes = run.comparable_validations
    if len(passes) < 3:
        return None
    best, last = min(passes, key=lambda event: number(event, "nats_per_token")), passes[-1]
    lowest, now = number(best, "nats_per_token"), number(last, "nats_per_token")
    if now <= 1.01 * lowest:
        return None
    train_then, train_now = (_train_loss_around(run, int(event["step"])) for event in (best, last))
    if not train_now < train_then:  # then the run diverged, or nothing is known
        return None
    return Finding(
        "problem" if now > 1.05 * lowest else "warning",
        "The model over-fits",
        f"Validation loss rose from {lowest:.3f} (step {best['step']:,}, its best) to {now:.3f} (step {last['step']:,})"
        f" while the training loss fell from {train_then:.3f} to {train_now:.3f}.",
        f"{_use_of_best(run)}; next time fewer --training.max-steps, more data, or more --model.dropout.",
    )


def above_the_lines(run: RunRecord) -> Finding | None:
    lines = run.baselines
    loss, kind = _last_loss(run)
    beaten = {line for line, nats in lines.items() if loss < nats}
    if not isfinite(loss) or "bigram" in beaten or "bigram" not in lines:
        return None
    learning = "unigram" in beaten
    return Finding(
        "warning" if learning else "problem",
        "The loss is above the bigram line" if learning else "The model is not learning",
        f"The {kind} loss is {loss:.2f} nats a token, {standing(loss, lines)}; the bigram line is {lines['bigram']:.2f}.",
        f"Train longer than {run.steps_done:,} steps (--training.max-steps), and try three times more and three times less"
        " --optimizer.learning-rate.",
    )


def smoothing_is_on(run: RunRecord) -> Finding | None:
    """With smoothing ε the least possible loss is the entropy of the smoothed target, far from zero."""
    smoothing, V = run.config.training.label_smoothing, run.config.model.vocab_size
    if smoothing == 0:
        return None
    hit, other = 1 - smoothing + smoothing / V, smoothing / V
    least = -hit * log(hit) - (V - 1) * other * log(other)
    return Finding(
        "note",
        "The training loss includes label smoothing",
        f"With smoothing {smoothing:g} over {V:,} ids even a perfect model shows a training loss of {least:.2f}.",
        "Compare only the validation loss with the n-gram lines, or set --training.label-smoothing 0.",
    )


def slows_down(run: RunRecord) -> Finding | None:
    speeds = [speed for event in run.train if isfinite(speed := number(event, "tokens_per_second"))]
    if len(speeds) < 2 * ENOUGH_STEPS:
        return None
    quarter = len(speeds) // 4
    first, last = median(speeds[quarter // 2 : quarter + quarter // 2]), median(speeds[-quarter:])
    if last >= 0.7 * first:
        return None
    return Finding(
        "warning",
        "The run got slower",
        f"{first:,.0f} tokens/s in its first quarter, {last:,.0f} in its last ({last / first:.0%}).",
        "Look for other programs, heat or swapping; --training.threads and --training.micro-batch set the load.",
    )


def _is_fp16(run: RunRecord) -> bool:
    return "fp16" in (run.start.get("precision"), run.config.training.precision)


def _skips_in_a_row(run: RunRecord) -> int:
    return max((int(skip.get("in_a_row", 1)) for skip in run.of_kind("skip")), default=0)


def _gave_up(run: RunRecord) -> bool:
    return _skips_in_a_row(run) >= run.config.training.max_skipped


def _last_loss(run: RunRecord) -> tuple[float, str]:
    """Validation loss if there is one, else the last training losses unless smoothing or z-loss makes them incomparable."""
    if isfinite(run.last_score):
        return run.last_score, "validation"
    recent = [loss for loss in run.losses[-ENOUGH_STEPS:] if isfinite(loss)]
    training = run.config.training
    if training.label_smoothing or training.z_loss or not recent:
        return float("nan"), "training"
    return median(recent), "training"


def _use_of_best(run: RunRecord) -> str:
    """What to use of an over-fitted run: the best of what was saved, which a validation pass between saves is not."""
    steps = {event["step"] for event in run.of_kind("checkpoint")}
    saved = [event for event in run.comparable_validations if event["step"] in steps]
    if not saved:
        return "No checkpoint was judged"
    best = min(saved, key=lambda event: number(event, "nats_per_token"))
    return (
        f"Use the checkpoint of step {best['step']:,} ({number(best, 'nats_per_token'):.3f}), which is marked as best"
    )


def _train_loss_around(run: RunRecord, step: int) -> float:
    """Mean training loss of the last steps up to `step`: a twentieth of the run, at least ten."""
    width = max(10, run.steps_done // 20)
    near = [
        loss
        for event, loss in zip(run.train, run.losses, strict=True)
        if step - width < event["step"] <= step and isfinite(loss)
    ]
    return fmean(near) if near else float("nan")


TRAINING_CHECKS: tuple[Callable[[RunRecord], Finding | None], ...] = (
    not_finite,
    scaler_skips,
    diverged,
    above_the_lines,
    over_fitting,
    rate_never_decays,
    always_clipped,
    loss_spikes,
    stopped_early,
    too_short,
    slows_down,
    smoothing_is_on,
)

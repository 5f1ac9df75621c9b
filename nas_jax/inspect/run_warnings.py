"""What in the numbers of a run deserves a second look."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, median

from nas_jax.inspect.negatives_found import warnings_of
from nas_jax.inspect.run_files import RunFiles

BAD, LOOK = "bad", "look"
INPUT_SHARE = 0.1  # of a step spent waiting for data
DEAD_SHARE = 0.2  # of the codes
LEFT_BEHIND = 2.5  # times as far from their codes as before the dictionary was frozen
SKIPPED_SHARE = 0.01  # of the pairs
STANDARD_ERRORS = 3  # below which two accuracies are taken as equal


@dataclass(frozen=True)
class RunWarning:
    """One finding. level: BAD (something is broken) or LOOK (may be as it should)."""

    level: str
    text: str
    remedy: str


def find_warnings(run: RunFiles) -> list[RunWarning]:
    """All findings, what is broken first."""
    found = [
        *_broken(run),
        *_losses(run),
        *_dictionary(run),
        *_speed(run),
        *_skipped(run),
        *_temperature(run),
        *_accuracies(run),
        *_negatives(run),
    ]
    return sorted(found, key=lambda one: one.level != BAD)


def _broken(run: RunFiles) -> Iterator[RunWarning]:
    for one in run.checkpoints:
        if one.damage:
            yield RunWarning(
                BAD, f"checkpoint {one.name} is damaged: {one.damage}", "see docs/checkpoints.md"
            )
    for line in run.unreadable:
        yield RunWarning(BAD, line, "a full disk or a copy that broke off leaves such lines")
    for name, text in run.hangs.items():
        reports = [line for line in text.splitlines() if "hang: process" in line]
        last = reports[-1].partition("; threads:")[0] if reports else "no report"
        yield RunWarning(
            BAD, f"{name}: {len(reports)} hangs; the last: {last}", f"read the stacks in {name}"
        )


def _losses(run: RunFiles) -> Iterator[RunWarning]:
    losses = [entry["loss"] for entry in run.train if "loss" in entry]
    bad = [entry["step"] for entry in run.train if not math.isfinite(entry.get("loss", 0.0))]
    if bad:
        yield RunWarning(
            BAD,
            f"the loss is not finite at step {bad[0]}",
            "lower optimizer.lr or raise the warm-up",
        )
        return
    tenth = len(losses) // 10
    if tenth >= 3:
        means = [
            fmean(losses[start : start + tenth])
            for start in range(0, len(losses) - tenth + 1, tenth)
        ]
        if means[-1] > 1.1 * min(means):
            last, best = means[-1], min(means)
            text = f"the loss rose again: {last:.3g} over the last tenth, {best:.3g} at best"
            yield RunWarning(LOOK, text, "lower optimizer.lr")


def _dictionary(run: RunFiles) -> Iterator[RunWarning]:
    codes, last = run.value("method.dictionary.codes", 0), run.train[-1] if run.train else {}
    dead, perplexity = last.get("dictionary/dead_codes"), last.get("dictionary/perplexity")
    if codes and dead is not None and dead > DEAD_SHARE * codes:
        text = f"{dead:.0f} of {codes} codes of the dictionary are dead ({dead / codes:.0%})"
        yield RunWarning(LOOK, text, "fewer method.dictionary.codes, or revive_every above 0")
    if perplexity is not None and perplexity < 4:
        text = (
            f"the dictionary has a perplexity of {perplexity:.1f}: most patches share a few codes"
        )
        yield RunWarning(
            BAD, text, "lower optimizer.lr, or method.dictionary.decay_min nearer to 1"
        )

    names = "dictionary/decay", "dictionary/distance"
    seen = [[entry[name] for name in names] for entry in run.train if names[1] in entry]
    moving = [distance for decay, distance in seen if decay < 1][-10:]
    frozen = [distance for decay, distance in seen if decay >= 1][-10:]
    if moving and frozen and fmean(frozen) > LEFT_BEHIND * fmean(moving):
        text = (
            "patches left the dictionary behind when it was frozen: squared distance to their "
            f"codes {fmean(frozen):.3g}, {fmean(moving):.3g} before"
        )
        remedy = "method.dictionary.freeze_with_nva=False, or a lower optimizer.lr from there on"
        yield RunWarning(LOOK, text, remedy)


def _speed(run: RunFiles) -> Iterator[RunWarning]:
    shares = [entry["input_share"] for entry in run.timings if "input_share" in entry][-20:]
    if shares and (share := median(shares)) > INPUT_SHARE:
        text = f"the step waits for data {share:.0%} of its time"
        yield RunWarning(
            LOOK,
            text,
            "more data.workers or data.threads, or pictures stored at the size they are read",
        )


def _skipped(run: RunFiles) -> Iterator[RunWarning]:
    last = run.train[-1] if run.train else {}
    pairs = last.get("step", 0) * run.value("data.batch_size", 0)
    if pairs and last.get("data/skipped", 0) > SKIPPED_SHARE * pairs:
        share = last["data/skipped"] / pairs
        text = (
            f"{last['data/skipped']:.0f} pictures could not be read and were replaced ({share:.1%})"
        )
        yield RunWarning(LOOK, text, "check the files; the console has named some")


def _temperature(run: RunFiles) -> Iterator[RunWarning]:
    values = [entry["itc/temp"] for entry in run.train if "itc/temp" in entry]
    bounds = [f"method.{part}temp_{end}" for part in ("itc.", "") for end in ("min", "max")]
    for name in bounds:
        bound = run.value(name)
        tail = values[-max(1, len(values) // 10) :]
        if (
            bound is not None
            and len(values) >= 10
            and all(math.isclose(value, bound, rel_tol=1e-4) for value in tail)
        ):
            text = f"the temperature of the contrastive loss stands at its bound, {bound:g}"
            yield RunWarning(LOOK, text, f"move {name} if it should go on")


def _accuracies(run: RunFiles) -> Iterator[RunWarning]:
    if not run.evaluations:
        return
    last = run.evaluations[-1]
    fallen, chance, blind = [], [], []
    for metric in last.metrics:
        key, value = metric["key"], metric["value"]
        history = [
            (old["value"], one.step)
            for one in run.evaluations[:-1]
            for old in one.metrics
            if old["key"] == key
        ]
        best, when = max(history, default=(-math.inf, 0))
        if best - value > STANDARD_ERRORS * standard_error(best, metric["count"]) * math.sqrt(2):
            fallen.append(f"{key} from {best:.1f} at step {when} to {value:.1f}")
        margin = STANDARD_ERRORS * standard_error(metric["chance"], metric["count"])
        # R@10 of ten pictures says nothing
        if value - metric["chance"] <= margin and metric["chance"] < 100:
            chance.append(f"{key} {value:.1f} (chance {metric['chance']:.1f})")
        elif (
            metric["blind"] is not None
            and metric["blind"] < 100
            and value - metric["blind"] <= margin
        ):
            blind.append(f"{key} {value:.1f} (text alone {metric['blind']:.1f})")
    if fallen:
        yield RunWarning(
            LOOK,
            f"falling: {_some(fallen)}",
            "take an earlier checkpoint (train.best_metric keeps the best)",
        )
    if chance:
        share = f"{len(chance)} of {len(last.metrics)} metrics"
        text = f"not above chance at step {last.step}, {share}: {_some(chance)}"
        yield RunWarning(LOOK, text, "train longer, or on more data")
    if blind:
        text = f"no better than the text alone at step {last.step}: {_some(blind)}"
        yield RunWarning(LOOK, text, "such a score says nothing about pictures")


def _negatives(run: RunFiles) -> Iterator[RunWarning]:
    """Of the diagnosis, if it was made (`python -m nas_jax.inspect.negatives`)."""
    if run.negatives is not None:
        for text, remedy in warnings_of(run.negatives):
            yield RunWarning(LOOK, f"at step {run.negatives.step} {text}", remedy)


def standard_error(percent: float, count: int) -> float:
    """Standard error of a share, in percent points; never 0, not even where it is 100 %."""
    share = min(max(percent / 100, 0.5 / max(count, 1)), 1 - 0.5 / max(count, 1))
    return 100 * math.sqrt(share * (1 - share) / max(count, 1))


def _some(lines: list[str], most: int = 4) -> str:
    return "; ".join(lines[:most]) + (
        f"; and {len(lines) - most} more" if len(lines) > most else ""
    )

"""What a diagnosis of negatives found, as numbers: how it is stored, printed and judged.

The numbers themselves are measured in `inspect/negatives.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nas_jax.utils.tables import aligned

if TYPE_CHECKING:  # the report reads a diagnosis without jax
    from nas_jax.typing import Array

NEGATIVES, NEGATIVES_PICTURE = "negatives.json", "negatives.png"
MOMENTS = (0.1, 0.25, 0.5, 1.0)  # of the training, at which accuracies are shown
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of P(match)
IN_BATCH = ("hard_image", "hard_text")  # kinds that are other pairs of the batch

SEPARATED = 0.98  # AUC above which a kind counts as told apart
RECOGNISED = 0.6  # mean P(match) below which true pairs count as not recognised
TOLD_FROM_HARD = 0.8  # AUC of in-batch negatives below which the same holds
SHORTCUT = 0.8  # AUC of what was changed alone, above which it betrays itself


@dataclass(frozen=True)
class KindFound:
    """One kind of rows of the matching loss. Shares are between 0 and 1; NaN: not known.

    `auc`: the probability that a true pair has the higher match score than a row of the kind.
    `auc_alone`: the same where the model sees no more than the side that was changed: the picture
    beside an empty caption, or the caption beside a blank picture.
    """

    name: str
    side: str  # what differs from the true pair: "picture", "text"; "" for true pairs
    rows: int  # valid ones, of which all numbers are
    valid: float
    changed: float  # of the patches or of the tokens
    match: float  # mean P(match)
    quantiles: tuple[float, ...]  # of P(match), at QUANTILES
    auc: float = math.nan
    auc_alone: float = math.nan
    history: tuple[float, ...] = ()  # accuracy of the loss in training, at MOMENTS


@dataclass(frozen=True)
class SceneTruth:
    """What the scenes say of a method's picture negatives; shares between 0 and 1."""

    base_rate: float  # patches that lie on a shape the caption names
    object_hit: float  # replaced object patches that do
    content_changed: float  # new codes that usually stand for something else than the old ones
    caption_contradicted: float  # valid rows: a hit, and the new code stands for something else
    shape_replaced: float = math.nan  # of the patches of a shape that was hit, in contradicted rows


@dataclass(frozen=True)
class Found:
    """A diagnosis of a checkpoint."""

    run: str
    step: int
    pairs: int
    batch_size: int  # in-batch negatives come from so many pairs
    data: str
    teacher: str  # who makes negative captions: "teacher", or "student" where there is none
    kinds: tuple[KindFound, ...]  # true pairs first
    truth: SceneTruth | None = None
    # picture negatives in the published form, made of the same pairs, where the run's are another
    published: KindFound | None = None
    published_truth: SceneTruth | None = None
    # steps -> accuracy on each kind in training
    steps: tuple[int, ...] = ()
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class NotFound(ValueError):
    """A text that holds no diagnosis."""


def to_json(found: Found) -> str:
    """NaN is written as null: JSON has none."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(entry) for name, entry in value.items()}
        if isinstance(value, tuple | list):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(asdict(found)), indent=1) + "\n"


def from_json(text: str) -> Found:
    """Raises NotFound where the text is not what `to_json` writes."""
    try:
        fields = json.loads(text)
        kinds = tuple(KindFound(**_numbers(one)) for one in fields["kinds"])
        truths = {name: fields.get(name) for name in ("truth", "published_truth")}
        truths = {name: one and SceneTruth(**_numbers(one)) for name, one in truths.items()}
        published = fields.get("published")
        published = published and KindFound(**_numbers(published))
        curves = {name: _filled(values) for name, values in fields["curves"].items()}
        steps = tuple(fields["steps"])
        read = {"kinds": kinds, "published": published, "curves": curves, "steps": steps} | truths
        return Found(**fields | read)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotFound(str(error)) from error


def _numbers(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _filled(value) if isinstance(value, list) else math.nan if value is None else value
        for name, value in fields.items()
    }


def _filled(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in values)


# ---------------------------------------------------------------------------------- numbers


def auc(above: np.ndarray | Array, below: np.ndarray | Array) -> float:
    """The probability that one of `above` is greater than one of `below`; ties count half.

    NaN where one of the two is empty.
    """
    if not len(above) or not len(below):
        return math.nan
    ordered = np.sort(below)
    less = np.searchsorted(ordered, above, "left")
    less_or_equal = np.searchsorted(ordered, above, "right")
    return float((less + less_or_equal).mean() / (2 * len(ordered)))


def probability_of(score: np.ndarray | Array) -> np.ndarray:
    """P(match) of logits of match minus those of no match: the sigmoid, without overflow."""
    return 0.5 * (1 + np.tanh(np.asarray(score, np.float64) / 2))


def curves(train: Sequence[Mapping[str, Any]], step: int) -> tuple[tuple[int, ...], dict]:
    """Steps up to `step`, and the accuracy on each kind at them. train: of metrics.jsonl."""
    prefix = "itm_accuracy/"
    entries = [one for one in train if one["step"] <= step and any(prefix in key for key in one)]
    names = dict.fromkeys(key for one in entries for key in one if key.startswith(prefix))
    return tuple(one["step"] for one in entries), {
        name.removeprefix(prefix): tuple(float(one.get(name, math.nan)) for one in entries)
        for name in names
    }


def at_moments(steps: Sequence[int], values: Sequence[float]) -> tuple[float, ...]:
    """The mean of the values within 5 % of the training before each of MOMENTS, or the value that
    is nearest; () without values.
    """
    if not len(values):
        return ()
    steps_S, values_S, found = np.asarray(steps), np.asarray(values), []
    for moment in MOMENTS:
        last = moment * steps_S[-1]
        near_S = (steps_S <= last) & (steps_S > last - 0.05 * steps_S[-1])
        if not near_S.any():
            near_S = np.arange(len(steps_S)) == np.abs(steps_S - last).argmin()
        near = values_S[near_S & np.isfinite(values_S)]
        found.append(float(near.mean()) if len(near) else math.nan)
    return tuple(found)


# ---------------------------------------------------------------------------------- warnings


def warnings_of(found: Found) -> list[tuple[str, str]]:
    """(text, remedy) of each kind that teaches something else than to tell pairs apart."""
    true, *negatives = found.kinds
    hard = [one.auc for one in negatives if one.name in IN_BATCH and one.rows]
    weak = true.match < RECOGNISED or any(value < TOLD_FROM_HARD for value in hard)
    lines = []
    for one in negatives:
        if one.auc > SEPARATED and weak and one.name not in IN_BATCH:
            against = f", in-batch negatives AUC {min(hard):.2f}" if hard else ""
            text = (
                f"{one.name} rows are told apart almost perfectly (AUC {one.auc:.3f}) while true "
                f"pairs are not recognised (P(match) {true.match:.2f}{against})"
            )
            lines.append((text, "they betray themselves by something else than their content"))
        if one.auc_alone > SHORTCUT:
            other = "caption" if one.side == "picture" else "picture"
            text = f"{one.name} rows are told apart without the {other}: AUC {one.auc_alone:.2f}"
            lines.append((text, f"a shortcut: the model need not read the {other}"))
    return lines


# ---------------------------------------------------------------------------------- as text

HEADER = ("kind", "rows", "valid", "changed", "P(match)", "AUC", "alone")


def cells(one: KindFound) -> tuple[str, ...]:
    """A kind as a row of the table under HEADER and MOMENTS."""
    of = {"picture": " patches", "text": " tokens"}.get(one.side, "")
    history = [percent(value) for value in one.history] or ["-"] * len(MOMENTS)
    changed = percent(one.changed) + (of if math.isfinite(one.changed) else "")
    numbers = f"{one.match:.3f}", decimal(one.auc), decimal(one.auc_alone)
    return (one.name, str(one.rows), percent(one.valid), changed, *numbers, *history)


def header() -> tuple[str, ...]:
    """Of `cells`."""
    return (*HEADER, *(f"{moment:.0%}" for moment in MOMENTS))


def percent(share: float) -> str:
    """0.123 -> "12 %"; "-" where it is not known."""
    return f"{100 * share:.0f} %" if math.isfinite(share) else "-"


def decimal(value: float) -> str:
    """Two digits, and three where it is nearly 1."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if 0.98 < value < 1 else f"{value:.2f}"


LEGEND = (
    "AUC: how often a true pair scores higher than a row of the kind (0.5: no better than chance)",
    "alone: the same with the changed side only: no caption for pictures, no picture for texts",
    "last columns: accuracy on the kind in training, after these shares of it",
)


def truth_lines(truth: SceneTruth) -> list[tuple[str, float]]:
    """What each number says, and the number."""
    return [
        ("patches that lie on a shape the caption names (base rate)", truth.base_rate),
        ("object hit: replaced object patches that do", truth.object_hit),
        ("content changed: the new code usually stands for something else", truth.content_changed),
        ("caption contradicted: both", truth.caption_contradicted),
        ("of the patches of a shape so hit, those replaced", truth.shape_replaced),
    ]


def as_text(found: Found) -> str:
    """The table, what the scenes say, and warnings."""
    rows = [header(), *(cells(one) for one in all_kinds(found))]
    lines = [headline(found), *aligned(rows)]
    lines += LEGEND
    if found.truth:
        lines.append("the truth of the scenes, of the picture negatives that the method makes:")
        lines += _truths(found.truth, found.published_truth)
    lines += [f"warning: {text}; {remedy}" for text, remedy in warnings_of(found)]
    return "\n".join(lines)


def all_kinds(found: Found) -> tuple[KindFound, ...]:
    """Those that were trained on, and the published form beside them."""
    return (*found.kinds, *([found.published] if found.published else []))


def _truths(truth: SceneTruth, beside: SceneTruth | None) -> list[str]:
    """A line each; with the published form in a second column."""
    if beside is None:
        return [f"  {percent(share):>5}  {text}" for text, share in truth_lines(truth)]
    lines = [f"  {'own':>5}  {'published':>9}"]
    both = zip(truth_lines(truth), truth_lines(beside), strict=True)
    return lines + [
        f"  {percent(share):>5}  {percent(other):>9}  {text}" for (text, share), (_, other) in both
    ]


def headline(found: Found) -> str:
    """What was measured on what."""
    return (
        f"negatives of {found.run} at step {found.step}, on {found.pairs} pairs of {found.data} in "
        f"batches of {found.batch_size}; captions are made by the {found.teacher}"
    )

"""The curves of a run, averaged in windows of steps, with the noise of each average.

A window holds one entry of metrics.jsonl or more. Windows are narrow at the start of a run and
grow, as most changes there. The noise of a single entry is found from how far entries lie from the
line between their two neighbours, so a slope is no noise; the largest fifth of these residuals is
left out, so a single outlier is none either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.inspect.run_files import Entry, by_step, read_entries, read_evaluations
from nas_jax.inspect.run_warnings import standard_error
from nas_jax.storage.paths import as_path
from nas_jax.train.workdir import EVALS, METRICS, STARTS, read_config
from nas_jax.utils.errors import DataError

WINDOWS, FEW_WINDOWS = 64, 12  # of a whole run, at most; and at least, if there are so many entries
ENTRIES = 2.5  # of a window in the mean, unless there are too few
GROWTH = 1.5  # window k of K ends at the share (k / K) ** GROWTH of the entries
REACH = 10  # entries on each side of a window whose residuals tell of its noise
KEPT_SHARE = 0.8  # of the residuals, the smallest
# standard deviation of a normal distribution over that of its KEPT_SHARE nearest to the mean
TRIMMED = 1.5115
UNKNOWN_COUNT = 100  # questions of an evaluation whose file in evals/ is not there
BEGINNINGS = ("loss/", "itm_accuracy/")
NAMES = ("loss", "optim/grad_norm")


@dataclass(frozen=True)
class Curve:
    """One metric in P windows. Values: nan = no entry there; inf = entries, but none is finite."""

    steps_P: np.ndarray  # mean step of the entries
    values_P: np.ndarray  # their mean
    errors_P: np.ndarray  # standard error of that mean
    first_P: np.ndarray  # step of the first entry
    last_P: np.ndarray


@dataclass(frozen=True)
class Entries:
    """What is compared of a run, every entry."""

    name: str  # the path that was given
    config: Mapping[str, Any]  # empty where no config.json is beside the metrics
    start: Entry  # the last line of starts.jsonl, or empty
    steps_N: np.ndarray
    train: Mapping[str, np.ndarray]  # metric -> N values; nan = not in the entry, inf = not finite
    evaluations: Mapping[str, Curve] = field(default_factory=dict)  # key -> one window each
    unreadable: tuple[str, ...] = ()  # a line about each line or file that was left out


def read_run_entries(path: str) -> Entries:
    """Reads a work directory or a metrics.jsonl.

    Raises DataError if it has no entry of the training, CheckpointError if it is no run.
    """
    place = as_path(path)
    unreadable: list[str] = []
    alone = place.suffix == ".jsonl"
    workdir, metrics = (place.parent, place) if alone else (place, place / METRICS)
    known = not alone or (workdir / "config.json").exists()
    config = read_config(workdir) if known else {}
    if not metrics.exists():
        raise DataError(f"no {metrics}", "the metrics of a run", "train, or name another")
    lines = list(read_entries(metrics, unreadable))
    train = by_step(entry for entry in lines if entry.get("kind") == "train")
    if not train:
        raise DataError(
            f"{metrics} without an entry of the training",
            "one every train.log_every steps",
            "wait for the first ones, or name another run",
        )
    evaluations = by_step(entry for entry in lines if entry.get("kind") == "eval")
    counts = _counts(workdir / EVALS, unreadable)
    starts = list(read_entries(workdir / STARTS, unreadable))
    return Entries(
        str(path),
        config,
        starts[-1] if starts else {},
        np.array([entry["step"] for entry in train]),
        {name: _column(train, name) for name in compared_names(train)},
        {key: _evaluation_curve(evaluations, key, counts) for key in _keys(evaluations)},
        tuple(unreadable),
    )


def compared_names(entries: Sequence[Entry]) -> list[str]:
    """Losses, accuracies and the norm of the gradient that the entries have, in this order."""
    present = dict.fromkeys(name for entry in entries for name in sorted(entry))
    parts = [name for start in BEGINNINGS for name in present if name.startswith(start)]
    first, last = NAMES
    return [name for name in (first, *parts, last) if name in present]


def _keys(evaluations: Sequence[Entry]) -> list[str]:
    present = dict.fromkeys(name for entry in evaluations for name in entry)
    return [name for name in present if name not in ("step", "kind")]


def _counts(folder: Path, unreadable: list[str]) -> dict[str, int]:
    """Questions of each evaluation, where its file is there."""
    found = read_evaluations(folder, unreadable)
    return {metric["key"]: int(metric["count"]) for one in found for metric in one.metrics}


def _number(value: Any) -> float:
    """inf for a number that is not finite; nan for none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    return float(value) if math.isfinite(value) else math.inf


def _column(entries: Sequence[Entry], name: str) -> np.ndarray:
    return np.array([_number(entry.get(name)) for entry in entries])


def _evaluation_curve(evaluations: Sequence[Entry], key: str, counts: Mapping[str, int]) -> Curve:
    """Each evaluation is a window; its error is that of a share of so many questions."""
    having = [one for one in evaluations if not math.isnan(_number(one.get(key)))]
    steps_P, values_P = np.array([one["step"] for one in having], float), _column(having, key)
    count = counts.get(key, UNKNOWN_COUNT)
    errors = [standard_error(value, count) if value < math.inf else 0.0 for value in values_P]
    return Curve(steps_P, values_P, np.array(errors), steps_P, steps_P)


# ----------------------------------------------------------------------------------------- windows


def window_ends(steps_N: np.ndarray) -> np.ndarray:
    """The last step of each window: at most WINDOWS, each with an entry or more."""
    count = min(WINDOWS, len(steps_N), max(FEW_WINDOWS, int(len(steps_N) / ENTRIES)))
    shares_K = (np.arange(1, count + 1) / count) ** GROWTH
    return steps_N[np.unique(np.ceil(shares_K * len(steps_N)).astype(int)) - 1]


def windowed(steps_N: np.ndarray, values_N: np.ndarray, ends_K: np.ndarray) -> Curve:
    """One metric, averaged over the entries up to each end; windows without an entry are left out.

    Args:
      steps_N: of the entries, rising.
      values_N: nan = not in the entry, inf = not finite; both are left out of averages.
      ends_K: last step of each window, rising; entries beyond the last are not used.
    """
    present_N = ~np.isnan(values_N)
    steps_N, values_N = steps_N[present_N], values_N[present_N]
    finite_N = np.isfinite(values_N)
    places_N = np.cumsum(finite_N)  # entry -> how many finite ones up to it
    residuals = _residuals(values_N[finite_N])
    bounds = np.searchsorted(steps_N, ends_K, side="right")
    rows = []
    for start, end in zip([0, *bounds[:-1]], bounds, strict=True):
        if start == end:
            continue
        inside = slice(start, end)
        kept = finite_N[inside]
        steps = steps_N[inside][kept] if kept.any() else steps_N[inside]
        value, error = math.inf, 0.0
        if kept.any():
            value = values_N[inside][kept].mean()
            around = _around(residuals, places_N[start], places_N[end - 1])
            error = _trimmed_deviation(around) / math.sqrt(kept.sum())
        rows.append((steps.mean(), value, error, steps_N[start], steps_N[end - 1]))
    return Curve(*np.array(rows, float).reshape(-1, 5).T)


def _residuals(values_N: np.ndarray) -> np.ndarray:
    """How far each inner entry lies from the middle of its neighbours, scaled so that independent
    noise has the standard deviation that it has in the entries.
    """
    if len(values_N) < 3:
        return np.zeros(0)
    return (values_N[1:-1] - (values_N[:-2] + values_N[2:]) / 2) * math.sqrt(2 / 3)


def _around(residuals: np.ndarray, first: int, last: int) -> np.ndarray:
    """Those of the finite entries `first` to `last` and of REACH more on each side."""
    return residuals[max(0, first - 1 - REACH) : last + REACH]


def _trimmed_deviation(residuals: np.ndarray) -> float:
    """Standard deviation by the KEPT_SHARE of the residuals that are smallest; 0 without any."""
    kept = np.sort(np.abs(residuals))[: math.ceil(KEPT_SHARE * len(residuals))]
    return TRIMMED * math.sqrt(float(np.mean(kept**2))) if len(kept) else 0.0

"""Means over seeds, and differences between variants, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from benchmarks.study.records import Record
from nas_jax.evals.statistics import interval, resampled_weights
from nas_jax.utils.errors import DataError

RESAMPLES = 2000


@dataclass(frozen=True)
class Mean:
    """Of a number over seeds, in percent. low and high: 95 % by Student's t; NaN with one seed."""

    values: tuple[float, ...]
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A variant minus another, seed by seed, in percentage points."""

    over_seeds: Mean  # what another seed would change
    low: float  # 95 % bootstrap over the pictures of these seeds; NaN where there are no questions
    high: float


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Raises DataError on no value."""
    if not len(values):
        raise DataError("a mean over no run", "a finished run", "let the study finish one")
    numbers = np.asarray(values, np.float64)
    count, mean = len(numbers), float(numbers.mean())
    if count == 1:
        return Mean(tuple(values), mean, math.nan, math.nan)
    half = stdtrit(count - 1, 0.975) * numbers.std(ddof=1) / math.sqrt(count)
    return Mean(tuple(values), mean, float(mean - half), float(mean + half))


def difference(
    first: Mapping[int, Record], second: Mapping[int, Record], key: str
) -> Difference | None:
    """second - first on the seeds that both have; None where they share none, or where one of them
    has no such number.

    key: of an evaluation, as "val/foils/itm/binding".
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds or any(key not in run[seed].metrics for run in (first, second) for seed in seeds):
        return None
    steps = [second[seed].metrics[key] - first[seed].metrics[key] for seed in seeds]
    over_seeds = mean_over_seeds(steps)
    samples = [_paired(first[seed], second[seed], key, seed) for seed in seeds]
    if any(sample is None for sample in samples):
        return Difference(over_seeds, math.nan, math.nan)
    return Difference(over_seeds, *interval(np.mean(samples, axis=0)))


def _paired(first: Record, second: Record, key: str, seed: int) -> np.ndarray | None:
    """Resampled differences of one seed: the same pictures are drawn for both runs.

    None where the number is no mean over questions.
    """
    benchmark, part, scorer, category = key.split("/")
    columns = [one.hits.get(f"{benchmark}:{part}/{scorer}") for one in (first, second)]
    if None in columns or (category != "macro" and category not in columns[0]):
        return None
    if columns[0].keys() != columns[1].keys():
        raise DataError(
            f"{first.name} and {second.name}: other categories",
            "the same questions",
            "delete the record of the older code",
        )
    units = first.units[f"{benchmark}:{part}/{scorer}"]
    wanted = list(columns[0]) if category == "macro" else [category]
    return np.mean([_resampled(*(column[one] for column in columns), units[one], seed)
                    for one in wanted], axis=0)  # fmt: skip


def _resampled(first: str, second: str, units: Sequence[int], seed: int) -> np.ndarray:
    if len(first) != len(second):
        raise DataError(
            f"{len(first)} and {len(second)} questions", "the same", "delete the older record"
        )
    gained_Q = np.array([int(b) - int(a) for a, b in zip(first, second, strict=True)], np.float32)
    unit_Q = np.unique(np.asarray(units), return_inverse=True)[1]
    blocks = resampled_weights(unit_Q, RESAMPLES, seed)
    return np.concatenate([100.0 * (w_RxQ @ gained_Q) / w_RxQ.sum(1) for w_RxQ in blocks])

"""How sure a number is: bootstrap intervals, and whether two models differ.

What is drawn again and again is a *unit*: all questions about one picture. Benchmarks ask several
questions about a picture (SugarCrepe 4.8 on average) and a model that misreads it fails in all of
them, so drawing single questions would make the intervals too narrow. `outcomes.units` says which
question belongs to which unit.

McNemar's exact test looks at single questions and is for benchmarks with one question a picture;
where units are larger, believe the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

RESAMPLES = 1000
LEVEL = 95.0  # percent
_BLOCK = 2_000_000  # weights held at a time


def resampled_weights(
    unit_Q: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[np.ndarray]:
    """How often each question is drawn when units are drawn with replacement: float32 blocks (some
    resamples, Q).

    Args:
      unit_Q: number of each question's unit, 0 .. units - 1.
      resamples: rows in all.
      seed: the same seed gives the same draws, so that two models can be compared draw by draw.
    """
    unit_Q = np.asarray(unit_Q)
    units = int(unit_Q.max()) + 1
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // max(units, len(unit_Q)))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units)
        yield weights[:, unit_Q].astype(np.float32)


def interval(samples_R: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` percent of resampled values (percentile bootstrap, Efron 1979).

    NaN where there are none.
    """
    samples_R = np.asarray(samples_R, np.float64)
    samples_R = samples_R[~np.isnan(samples_R)]
    if not samples_R.size:
        return math.nan, math.nan
    low, high = np.percentile(samples_R, [(100 - level) / 2, (100 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    hits_Q: np.ndarray, unit_Q: np.ndarray | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Interval of the percentage of hits; each question is its own unit where `unit_Q` is None."""
    return interval(_means(np.asarray(hits_Q, np.float64), unit_Q, resamples, seed))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value (McNemar 1947): a fair coin for each question that just one of two
    models answers.
    """
    flips, fewer = only_first + only_second, min(only_first, only_second)
    term, total = 1, 0  # integers of any size, so nothing underflows
    for heads in range(fewer + 1):
        total += term
        term = term * (flips - heads) // (heads + 1)
    return min(1.0, 2 * total / 2**flips)


def _means(
    values_Q: np.ndarray, unit_Q: np.ndarray | None, resamples: int, seed: int
) -> np.ndarray:
    unit_Q = np.arange(len(values_Q)) if unit_Q is None else unit_Q
    blocks = resampled_weights(unit_Q, resamples, seed)
    return np.concatenate([100.0 * (w @ values_Q) / w.sum(axis=1) for w in blocks])

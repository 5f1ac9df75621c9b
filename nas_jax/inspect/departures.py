"""At which step a run departs from reference runs of the same config.

In each window of steps the mean of the run is compared with the mean of the references at that
step. It may be away by the tolerance:

    3 standard errors   of both means, and of the seeds where there are two references or more
    + a share           of the value, or of a tenth of its range where that is more: 2 %, and with
                        one reference, which does not say how far seeds lie apart, 10 %
    + slack             with one reference: as much as it changes within a tenth of the step

The noise of a run with few entries is found from its bends too, so that it may lie a little off the
line between the windows of a run that logs at other intervals.

A departure is three windows in a row beyond the tolerance on the same side. Evaluations are means
already: two in a row, or the last alone by 1.5 times the tolerance. What is not finite where the
references are is beyond any tolerance, and a departure also where the run ends with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas_jax.inspect.curves import Curve, Entries, windowed
from nas_jax.inspect.references import Reference

ERRORS = 3.0  # standard errors
SHARE, SHARE_OF_ONE = 0.02, 0.1  # of the value; the second with one reference
RANGE_SHARE = 0.1  # of the range, below which a value counts as so large
IN_A_ROW, EVALUATIONS_IN_A_ROW = 3, 2
LAST_ALONE = 1.5  # tolerances
SLACK = 0.1  # of the step, earlier or later
POOLED = 4  # windows on each side whose variance over seeds is averaged


@dataclass(frozen=True)
class Verdict:
    """One metric in P windows that run and references have in common."""

    metric: str
    run: Curve
    centre_P: np.ndarray  # mean of the references
    tolerance_P: np.ndarray
    departure: tuple[int, int] | None  # first and last window of the first departure
    enough: bool  # windows to tell a departure
    evaluation: bool = False

    @property
    def first_step(self) -> int | None:
        """Of the departure."""
        return int(self.run.first_P[self.departure[0]]) if self.departure else None

    @property
    def last_step(self) -> int | None:
        """Of the departure; None without one, or if it lasts to the end."""
        if not self.departure or self.departure[1] == len(self.centre_P) - 1:
            return None
        return int(self.run.last_P[self.departure[1]])

    @property
    def compared_to(self) -> int:
        """The last step that was compared."""
        return int(self.run.last_P[-1])


def compare(
    run: Entries, references: Sequence[Reference], share: float | None = None
) -> list[Verdict]:
    """A verdict on each metric that the run and a reference have at the same steps.

    share: of the value, a part of the tolerance; None: as the number of references says.
    """
    if share is None:
        share = SHARE if len(references) > 1 else SHARE_OF_ONE
    ends_K = references[0].ends_K
    found = []
    for name, column_N in run.train.items():
        curve = windowed(run.steps_N, column_N, ends_K)
        known = [one.train[name] for one in references if name in one.train]
        found.append(_verdict(name, curve, known, share))
    for key, curve in run.evaluations.items():
        known = [one.evaluations[key] for one in references if key in one.evaluations]
        found.append(_verdict(key, curve, known, share, evaluation=True))
    return [one for one in found if one is not None]


def _verdict(
    metric: str, curve: Curve, known: Sequence[Curve], share: float, evaluation: bool = False
) -> Verdict | None:
    """None without a step in common."""
    known = [one for one in known if len(one.steps_P)]
    if not known or not len(curve.steps_P):
        return None
    values_SxP = np.array([at_steps(one.steps_P, one.values_P, curve.steps_P) for one in known])
    errors_SxP = np.array([at_steps(one.steps_P, one.errors_P, curve.steps_P) for one in known])
    common = ~np.isnan(values_SxP).all(axis=0)
    if not common.any():
        return None
    curve = Curve(*(column[common] for column in vars(curve).values()))
    values_SxP, errors_SxP = values_SxP[:, common], errors_SxP[:, common]
    centre_P = np.nanmean(values_SxP, axis=0)
    variance_P = variance_of_difference(values_SxP, errors_SxP, curve.errors_P)
    tolerance_P = ERRORS * np.sqrt(variance_P)
    tolerance_P += allowance(known, curve.steps_P, centre_P, share)
    needed, alone = (EVALUATIONS_IN_A_ROW, LAST_ALONE) if evaluation else (IN_A_ROW, math.inf)
    departure = first_departure((curve.values_P - centre_P) / tolerance_P, needed, alone)
    enough = evaluation or departure is not None or len(centre_P) >= needed
    return Verdict(metric, curve, centre_P, tolerance_P, departure, enough, evaluation)


def at_steps(steps_R: np.ndarray, values_R: np.ndarray, steps_P: np.ndarray) -> np.ndarray:
    """Values at other steps, on straight lines between those known; nan before and after them."""
    return np.interp(steps_P, steps_R, values_R, left=math.nan, right=math.nan)


def variance_of_difference(
    values_SxP: np.ndarray, errors_SxP: np.ndarray, errors_P: np.ndarray
) -> np.ndarray:
    """Variance (P,) of a run's mean minus that of S references, if it is a further seed of theirs.

    Args:
      values_SxP: of the references; nan where one has no value.
      errors_SxP: their standard errors.
      errors_P: standard errors of the run.
    """
    count_P = (~np.isnan(values_SxP)).sum(axis=0)
    noise_P = np.nanmean(errors_SxP**2, axis=0)
    seeds_P = np.zeros_like(noise_P)
    several = count_P > 1
    if several.any():
        between = np.nanvar(values_SxP[:, several], axis=0, ddof=1)
        seeds_P[several] = np.maximum(_pooled(between) - _pooled(noise_P[several]), 0)
    return seeds_P * (1 + 1 / count_P) * _few(count_P) ** 2 + errors_P**2 + noise_P / count_P


def _few(count_P: np.ndarray) -> np.ndarray:
    """How much wider the spread of few seeds is taken, as it may be too small by chance."""
    return 1 + 1 / np.maximum(count_P - 1, 1)


def _pooled(variance_P: np.ndarray) -> np.ndarray:
    """Averages over POOLED windows on each side."""
    sums = np.concatenate([[0.0], np.cumsum(variance_P)])
    places = np.arange(len(variance_P))
    low, high = np.maximum(places - POOLED, 0), np.minimum(places + POOLED + 1, len(variance_P))
    return (sums[high] - sums[low]) / (high - low)


def allowance(
    known: Sequence[Curve], steps_P: np.ndarray, centre_P: np.ndarray, share: float
) -> np.ndarray:
    """The part of the tolerance (P,) that is not chance: a share of the value, and slack."""
    scale = RANGE_SHARE * (centre_P.max() - centre_P.min())
    allowed_P = share * np.maximum(np.abs(centre_P), scale)
    allowed_P = np.maximum(allowed_P, np.finfo(np.float32).tiny)  # a divisor
    if len(known) == 1:
        first = known[0]
        here = np.interp(steps_P, first.steps_P, first.values_P)
        moved = [
            np.interp(steps_P * factor, first.steps_P, first.values_P)
            for factor in 1 + SLACK * np.array([-1, -0.5, 0.5, 1])
        ]
        errors_P = np.interp(steps_P, first.steps_P, first.errors_P)
        moves_P = np.abs(np.array(moved) - here).max(axis=0)
        allowed_P += _beyond_noise(moves_P, math.sqrt(2) * errors_P)
    return allowed_P


def _beyond_noise(values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """What is left of differences when two standard errors are taken off."""
    return np.maximum(values - 2 * errors, 0)


def first_departure(
    excess_P: np.ndarray, needed: int, alone: float = math.inf
) -> tuple[int, int] | None:
    """First and last window of the first departure.

    Args:
      excess_P: difference over tolerance; inf = not finite.
      needed: windows in a row beyond 1, on one side.
      alone: the last window by itself is a departure beyond this, and if it is not finite.
    """
    sides_P = np.sign(excess_P) * (np.abs(excess_P) > 1)
    lost_P = np.isinf(excess_P)
    start, count = 0, len(excess_P)
    while start < count:
        end = start + 1
        while end < count and _together(sides_P, lost_P, start, end):
            end += 1
        inside = slice(start, end)
        to_the_end = end == count and (lost_P[inside].all() or abs(excess_P[-1]) > alone)
        if sides_P[start] and (end - start >= needed or to_the_end):
            return start, end - 1
        start = end
    return None


def _together(sides_P: np.ndarray, lost_P: np.ndarray, start: int, place: int) -> bool:
    """Whether a window goes on with the row that began at `start`."""
    if lost_P[place]:
        return bool(sides_P[start])
    sides = set(sides_P[start:place][~lost_P[start:place]])
    return sides <= {sides_P[place]} and bool(sides_P[place]) == bool(sides_P[start])

"""From the outcomes of a benchmark's questions to its numbers, in plain numpy.

Parts: all (mean over questions), macro (mean over categories), each group (mean over its
categories) and each category.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nas_jax.evals.metrics import Metric
from nas_jax.evals.outcomes import ABSOLUTE, Outcome, outcomes
from nas_jax.evals.questions import Benchmark, Cells, Scored
from nas_jax.evals.statistics import RESAMPLES, interval, resampled_weights

MEAN_OF_CELLS, LEAST_OF_CELLS, AUROC = "accuracy_at_0.5", "min_p_c_p_f", "auroc"


def units(benchmark: Benchmark) -> np.ndarray:
    """Number of the unit that each question is drawn with, (Q,): see `statistics`.

    Questions with the same first picture are one unit (of form texts: with the same first text),
    and so are the largest sets of `Benchmark.together`.
    """
    names: list = [
        question.images[0] if question.images else question.texts[0]
        for question in benchmark.questions
    ]
    if benchmark.together:
        largest = max(
            benchmark.together.values(),
            key=lambda sets: max((len(keys) for keys in sets), default=0),
        )
        shown = {question.key: question.images[0] for question in benchmark.questions}
        first = {key: shown[keys[0]] for keys in largest if keys[0] in shown for key in keys}
        names = [first.get(question.key, question.images[0]) for question in benchmark.questions]
    known: dict = {}
    return np.array([known.setdefault(name, len(known)) for name in names])


def numbers(
    benchmark: Benchmark, scored: Scored, resamples: int = RESAMPLES, seed: int = 0
) -> list[Metric]:
    """All numbers of a benchmark under one scorer.

    Args:
      benchmark: the questions.
      scored: their scores; scorers in THRESHOLDS also get the quantities that need a threshold.
      resamples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      DataError: scores that do not fit the questions.
    """
    table = _PartTable(benchmark, scored.seen, scored.scorer)
    once = np.ones((1, len(scored.seen)), np.float32)
    values, unseen = table.values(once), None
    if scored.blind is not None:
        unseen = _PartTable(benchmark, scored.blind, scored.scorer).values(once)
    weights = resampled_weights(units(benchmark), resamples, seed)
    drawn = [table.values(block) for block in weights]
    out = []
    for column, part in enumerate(table.parts):
        for quantity in table.quantities:
            value = float(values[quantity][0, column])
            if math.isnan(value):  # a set of questions is of no category
                continue
            low, high = interval(np.concatenate([block[quantity][:, column] for block in drawn]))
            metric = Metric(
                benchmark.name,
                part,
                scored.scorer,
                quantity,
                value=value,
                low=low,
                high=high,
                chance=table.chance(quantity, part),
                blind=None if unseen is None else float(unseen[quantity][0, column]),
                count=table.count(quantity, part),
                ties=table.ties(quantity, part),
            )
            out.append(metric)
    return out


class _PartTable:
    """Quantities (of one scorer) by parts of the benchmark, for any weights of its questions."""

    def __init__(self, benchmark: Benchmark, scores: Cells, scorer: str):
        self.outcomes = outcomes(benchmark, scores, scorer)
        self._auroc = _auroc_inputs(benchmark, scores)
        cells = ABSOLUTE.get(benchmark.form, ())
        # quantity -> the outcomes it is made of
        self._behind: dict[str, tuple[str, ...]] = {name: (name,) for name in self.outcomes}
        if cells and cells[0] in self.outcomes:
            self._behind[MEAN_OF_CELLS] = cells
            if benchmark.form == "choice":
                self._behind[LEAST_OF_CELLS] = cells
        self.quantities = (*self._behind, *((AUROC,) if self._auroc else ()))
        categories, self._averages = _parts(benchmark)
        self._rows = {"all": np.arange(len(scores)), **categories}
        self.parts = ("all", *self._averages, *categories)
        if len(categories) == 1:  # the same as all
            same = {"macro", *categories}
            self.parts = tuple(part for part in self.parts if part not in same)

    def values(self, weights_RxQ: np.ndarray) -> dict[str, np.ndarray]:
        """Quantity -> (R, parts) percentages, NaN where nothing is counted."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, outcome in self.outcomes.items():
            found[name] = {
                part: _weighted_mean(weights_RxQ, outcome.hits, self._counted(name, part))
                for part in self._rows
            }
        for name, combine in ((MEAN_OF_CELLS, _mean_of), (LEAST_OF_CELLS, np.min)):
            if name in self._behind:
                pair = [found[cell] for cell in self._behind[name]]
                found[name] = {
                    part: combine([one[part] for one in pair], axis=0) for part in self._rows
                }
        if self._auroc:
            found[AUROC] = {
                part: _auroc(weights_RxQ, *self._auroc, rows) for part, rows in self._rows.items()
            }
        return {name: self._stack(by_part) for name, by_part in found.items()}

    def _stack(self, by_part: dict[str, np.ndarray]) -> np.ndarray:
        averages = {
            name: _mean_of([by_part[one] for one in members])
            for name, members in self._averages.items()
        }
        return np.stack([(averages | by_part)[part] for part in self.parts], axis=1)

    def _counted(self, name: str, part: str) -> np.ndarray:
        """Rows that an outcome counts in "all" or in a category."""
        outcome, rows = self.outcomes[name], self._rows[part]
        return rows[(outcome.counted if part == "all" else outcome.counted_in_category)[rows]]

    def _answers(self, quantity: str, part: str) -> list[tuple[Outcome, np.ndarray]]:
        """What a number is made of: outcomes, each with the rows that count."""
        parts = self._averages.get(part, (part,))
        return [
            (self.outcomes[name], self._counted(name, one))
            for one in parts
            for name in self._behind[quantity]
        ]

    def count(self, quantity: str, part: str) -> int:
        """Answers of a part; of auroc, cells."""
        if quantity == AUROC and self._auroc:
            questions = sum(len(self._rows[one]) for one in self._averages.get(part, (part,)))
            return questions * (2 if self._auroc[2] is None else 1)
        return sum(len(rows) for _, rows in self._answers(quantity, part))

    def ties(self, quantity: str, part: str) -> int:
        """Answers of a part that were wrong by a tie; auroc counts ties by half and so has none."""
        if quantity == AUROC:
            return 0
        return sum(int(outcome.ties[rows].sum()) for outcome, rows in self._answers(quantity, part))

    def chance(self, quantity: str, part: str) -> float:
        """Of a part, averaged as its value is."""
        if quantity == AUROC:
            return 50.0
        answers = self._answers(quantity, part)
        return float(np.mean([one.chance[rows].mean() for one, rows in answers if rows.size]))


def _parts(benchmark: Benchmark) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Category -> its rows, sorted by name; and average -> its categories, macro first."""
    column = np.array([question.category for question in benchmark.questions])
    members = {str(name): np.flatnonzero(column == name) for name in np.unique(column)}
    macro = tuple(members) if benchmark.macro is None else benchmark.macro
    averages: Mapping[str, tuple[str, ...]] = {"macro": macro, **benchmark.groups}
    present = {
        name: tuple(part for part in parts if part in members) for name, parts in averages.items()
    }
    return members, {name: parts for name, parts in present.items() if parts}


def _weighted_mean(weights_RxQ: np.ndarray, hits_Q: np.ndarray, rows: np.ndarray) -> np.ndarray:
    weights = weights_RxQ[:, rows] if len(rows) < weights_RxQ.shape[1] else weights_RxQ
    total, good = weights.sum(axis=1, dtype=np.float64), weights @ hits_Q[rows].astype(np.float64)
    return np.divide(100.0 * good, total, out=np.full(len(total), np.nan), where=total > 0)


def _mean_of(columns: Sequence[np.ndarray], axis: int = 0) -> np.ndarray:
    """Mean over categories; one that a resample happens not to draw is left out of it."""
    stacked = np.stack(columns)
    known = ~np.isnan(stacked)
    total, count = np.where(known, stacked, 0.0).sum(axis=axis), known.sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _auroc_inputs(
    benchmark: Benchmark, scores: Cells
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """(scores of the positive cells, of the negative ones, which rows are positive or None), or
    None.
    """
    if not (benchmark.form == "yes_no" or (benchmark.form == "choice" and benchmark.absolute)):
        return None
    cells_QxC = np.array([np.ravel(cell)[:2] for cell in scores], np.float64)
    positive_Q, negative_Q = cells_QxC[:, 0], cells_QxC[:, -1]
    true_Q = None
    if benchmark.form == "yes_no":
        true_Q = np.array([question.true for question in benchmark.questions])
    # NaN never wins: below everything where high is right, above everything where low is right.
    return np.nan_to_num(positive_Q, nan=-np.inf), np.nan_to_num(negative_Q, nan=np.inf), true_Q


def _auroc(
    weights_RxQ: np.ndarray,
    positive_Q: np.ndarray,
    negative_Q: np.ndarray,
    true_Q: np.ndarray | None,
    rows: np.ndarray,
) -> np.ndarray:
    """Area under the ROC curve x 100 (R,): how often a positive cell scores above a negative one,
    ties by half.
    """
    ups = rows if true_Q is None else rows[true_Q[rows]]
    downs = rows if true_Q is None else rows[~true_Q[rows]]
    if not len(ups) or not len(downs):
        return np.full(len(weights_RxQ), np.nan)
    cells = np.concatenate([positive_Q[ups], negative_Q[downs]])
    order = np.argsort(cells, kind="stable")
    levels = cells[order]
    starts = np.flatnonzero(np.concatenate([[True], levels[1:] != levels[:-1]]))
    is_up = order < len(ups)
    weights = weights_RxQ[:, np.concatenate([ups, downs])[order]].astype(np.float64)
    up = np.add.reduceat(weights * is_up, starts, axis=1)
    down = np.add.reduceat(weights * ~is_up, starts, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    total = up.sum(axis=1) * down.sum(axis=1)
    share = 100.0 * (up * below).sum(axis=1)
    return np.divide(share, total, out=np.full(len(total), np.nan), where=total > 0)

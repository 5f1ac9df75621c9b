"""From the scores of a benchmark's questions to its numbers, in plain numpy.

Every comparison is strict: what ties with the right answer beats it, and NaN never wins. A *tie* is
a question that only `>=` would have counted as right; ties are reported beside each number, because
code that ranks with argmax gives them away as right or wrong by the order of the options.

| form | quantities |
|---|---|
| choice, picture | accuracy (the right one beats all others); r@k for each of `Benchmark.cuts` |
| quad | text, image, group (Thrush et al. 2022, equations 1 to 3) |
| two_true, texts | accuracy |
| yes_no | accuracy at the threshold of the scorer, auroc |

Pairs with `Benchmark.absolute` are also judged one cell at a time, for scorers with a threshold, as
VALSE (Parcalabescu et al. 2022, section 5) does it: p_c (captions above the threshold), p_f (foils
not above it), accuracy_at_0.5 (their mean), min_p_c_p_f, and for every scorer auroc. Of form
picture the same two are p_pos and p_neg, over distinct (text, picture) pairs (SVO-Probes code,
accuracy()).

Parts: all (mean over questions), macro (mean over categories), each group (mean over its
categories) and each category.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas_jax.evals.metrics import QUAD_CHANCE
from nas_jax.evals.questions import FORMS, Benchmark, Question
from nas_jax.evals.statistics import RESAMPLES, interval, resampled_weights
from nas_jax.utils.errors import DataError

THRESHOLDS = {"itm": 0.0, "probability": 0.5}
"""Scorer -> the score at which a match is as likely as none.

Others only rank: a cosine has no such point.
"""

Scores = Sequence[np.ndarray]
"""One array a question, (pictures, texts), or (texts, texts) of form texts."""

Beats = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """One reading of all questions. Arrays of length Q."""

    hits: np.ndarray  # bool
    ties: np.ndarray  # bool: wrong by a tie alone
    chance: np.ndarray  # percent, of random scores
    counted: np.ndarray  # bool: part of the mean over all questions
    counted_in_category: np.ndarray  # bool: part of the mean of its category


@dataclass(frozen=True)
class Row:
    """One number of a benchmark, with what is needed to judge it.

    All in percent but `count` and `ties`.
    """

    benchmark: str
    part: str  # "all", "macro", a group or a category
    scorer: str
    quantity: str
    value: float
    low: float  # 95 % bootstrap interval over pictures
    high: float
    chance: float  # what random scores get
    blind: float | None  # what the scorer gets without seeing the pictures
    count: int  # answers that it is a mean over
    ties: int  # answers that were wrong by a tie alone

    @property
    def key(self) -> str:
        """benchmark/part/scorer/quantity, like "valse/existence/itm/accuracy"."""
        return "/".join((self.benchmark, self.part, self.scorer, self.quantity))


# ---------------------------------------------------------------------------------- reading answers


def outcomes(benchmark: Benchmark, scores: Scores, scorer: str) -> dict[str, Outcome]:
    """Quantity -> its outcome of every question.

    Raises DataError where scores and questions do not fit.
    """
    check_shapes(benchmark, scores)
    threshold = THRESHOLDS.get(scorer)
    strict = hits(benchmark, scores, threshold)
    lenient = hits(benchmark, scores, threshold, np.greater_equal)
    chances = _chances(benchmark)
    everything = np.ones(len(benchmark.questions), bool)
    out = {}
    for name, hits_Q in strict.items():
        counted_Q, in_category_Q = everything, everything
        if name in _CELLS.get(benchmark.form, ()) and benchmark.form == "picture":
            counted_Q, in_category_Q = _distinct(benchmark, _CELLS["picture"].index(name))
        out[name] = Outcome(
            hits_Q, lenient[name] & ~hits_Q, chances[name], counted_Q, in_category_Q
        )
    if "accuracy" in out:
        out |= {
            name: _all_right(benchmark, out["accuracy"], sets)
            for name, sets in benchmark.together.items()
        }
    return out


def hits(
    benchmark: Benchmark, scores: Scores, threshold: float | None = None, beats: Beats = np.greater
) -> dict[str, np.ndarray]:
    """Quantity -> which questions are right, (Q,) bool. `beats(right, wrong)` is the comparison."""
    if benchmark.form in ("choice", "picture"):
        return _first_beats_rest(benchmark, scores, threshold, beats)
    cells = np.stack([np.asarray(cell, np.float64) for cell in scores])
    if benchmark.form == "quad":
        text_Q = beats(cells[:, 0, 0], cells[:, 0, 1]) & beats(cells[:, 1, 1], cells[:, 1, 0])
        image_Q = beats(cells[:, 0, 0], cells[:, 1, 0]) & beats(cells[:, 1, 1], cells[:, 0, 1])
        return {"text": text_Q, "image": image_Q, "group": text_Q & image_Q}
    if benchmark.form == "two_true":
        return {
            "accuracy": beats(cells[:, 0, 0], cells[:, 0, 2])
            & beats(cells[:, 0, 1], cells[:, 0, 2])
        }
    if benchmark.form == "texts":
        return {
            "accuracy": beats(cells[:, 0, 1], cells[:, 0, 2])
            & beats(cells[:, 0, 1], cells[:, 1, 2])
        }
    if threshold is None:
        return {}
    true_Q = np.array([question.true for question in benchmark.questions])
    score_Q = cells[:, 0, 0]
    return {"accuracy": np.where(true_Q, beats(score_Q, threshold), beats(threshold, score_Q))}


_CELLS = {"choice": ("p_c", "p_f"), "picture": ("p_pos", "p_neg")}
MEAN_OF_CELLS, LEAST_OF_CELLS, AUROC = "accuracy_at_0.5", "min_p_c_p_f", "auroc"


def _first_beats_rest(
    benchmark: Benchmark, scores: Scores, threshold: float | None, beats: Beats
) -> dict:
    width = max(np.size(cell) for cell in scores)
    cells_QxC = np.full((len(scores), width), np.nan)
    for row_C, cell in zip(cells_QxC, scores, strict=True):
        row_C[: np.size(cell)] = np.ravel(cell)
    absent_QxC = np.arange(width)[None] >= np.array([np.size(cell) for cell in scores])[:, None]
    right_Qx1, rest_QxR, absent_QxR = cells_QxC[:, :1], cells_QxC[:, 1:], absent_QxC[:, 1:]
    won_QxR = beats(right_Qx1, rest_QxR)
    out = {"accuracy": (won_QxR | absent_QxR).all(axis=1)}
    above_Q = (~won_QxR & ~absent_QxR).sum(axis=1)
    out |= {f"r@{k}": (above_Q < k) & ~np.isnan(right_Qx1[:, 0]) for k in benchmark.cuts}
    if benchmark.absolute and threshold is not None:
        first, second = _CELLS[benchmark.form]
        out[first] = beats(cells_QxC[:, 0], threshold)
        # as published: what is exactly at it counts as "no match"
        out[second] = cells_QxC[:, 1] <= threshold
    return out


def _chances(benchmark: Benchmark) -> dict[str, np.ndarray]:
    """Quantity -> expected percentage of random scores, (Q,)."""
    questions = benchmark.questions
    if benchmark.form in ("choice", "picture"):
        options_Q = np.array(
            [max(len(question.texts), len(question.images)) for question in questions]
        )
        out = {"accuracy": 100.0 / options_Q}
        out |= {f"r@{k}": 100.0 * np.minimum(k / options_Q, 1.0) for k in benchmark.cuts}
        return out | {name: np.full(len(questions), 50.0) for name in _CELLS[benchmark.form]}
    constant = (
        QUAD_CHANCE
        if benchmark.form == "quad"
        else {"accuracy": 50.0 if benchmark.form == "yes_no" else 100 / 3}
    )
    return {name: np.full(len(questions), chance) for name, chance in constant.items()}


def _distinct(benchmark: Benchmark, position: int) -> tuple[np.ndarray, np.ndarray]:
    """True where a question's (text, picture at `position`) comes for the first time: in all, and
    in its category.
    """
    pairs = [(question.texts[0], question.images[position]) for question in benchmark.questions]
    inside = [
        (*pair, question.category)
        for pair, question in zip(pairs, benchmark.questions, strict=True)
    ]
    return _first_times(pairs), _first_times(inside)


def _first_times(things: Sequence[tuple]) -> np.ndarray:
    seen: dict[tuple, int] = {}
    return np.array([seen.setdefault(thing, index) == index for index, thing in enumerate(things)])


def _all_right(benchmark: Benchmark, single: Outcome, sets: Sequence[Sequence[str]]) -> Outcome:
    """An outcome that stands at the first question of each set; sets that are not complete are not
    counted.
    """
    index = {question.key: number for number, question in enumerate(benchmark.questions)}
    size = len(index)
    hits_Q, ties_Q, counted_Q = np.zeros(size, bool), np.zeros(size, bool), np.zeros(size, bool)
    chance_Q = np.zeros(size)
    for keys in sets:
        if any(key not in index for key in keys):
            continue
        members = [index[key] for key in keys]
        first = members[0]
        counted_Q[first], hits_Q[first] = True, single.hits[members].all()
        ties_Q[first] = (single.hits | single.ties)[members].all() and not hits_Q[first]
        chance_Q[first] = 100.0 * np.prod(single.chance[members] / 100.0)
    return Outcome(hits_Q, ties_Q, chance_Q, counted_Q, np.zeros(size, bool))


def check_shapes(benchmark: Benchmark, scores: Scores) -> None:
    """Raises DataError on a form that does not exist, and where the cells are not those of the
    questions.
    """
    name = benchmark.name
    if benchmark.form not in FORMS:
        raise DataError(f"{name}: form {benchmark.form!r}", f"one of {FORMS}", "mend the loader")
    if len(scores) != len(benchmark.questions) or not len(scores):
        got = f"{name}: scores of {len(scores)} questions"
        raise DataError(got, f"{len(benchmark.questions)}, at least 1", "score the same benchmark")
    for question, cell in zip(benchmark.questions, scores, strict=True):
        want = cells_of(benchmark.form, question)
        if np.shape(cell) != want:
            got = f"{name}: scores of shape {np.shape(cell)} for question {question.key!r}"
            raise DataError(got, f"{want}, (pictures, texts)", "score the same benchmark")


def cells_of(form: str, question: Question) -> tuple[int, int]:
    """Shape of the scores of a question."""
    return len(question.texts if form == "texts" else question.images), len(question.texts)


# --------------------------------------------------------------------------------- numbers of parts


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
        first = {key: keys[0] for keys in largest for key in keys}
        names = [("set", first.get(q.key, q.key)) for q in benchmark.questions]
    numbers: dict = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


def rows(
    benchmark: Benchmark,
    scores: Scores,
    scorer: str,
    blind: Scores | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """All numbers of a benchmark under one scorer.

    Args:
      benchmark: the questions.
      scores: their cells.
      scorer: its name; those in THRESHOLDS also get the quantities that need a threshold.
      blind: cells of the same scorer with a blank picture in place of each.
      resamples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      DataError: scores that do not fit the questions.
    """
    table = _Table(benchmark, scores, scorer)
    values = table.values(np.ones((1, len(scores)), np.float32))
    drawn = [
        table.values(weights) for weights in resampled_weights(units(benchmark), resamples, seed)
    ]
    unseen = (
        None
        if blind is None
        else _Table(benchmark, blind, scorer).values(np.ones((1, len(scores)), np.float32))
    )
    out = []
    for column, part in enumerate(table.parts):
        for quantity in table.quantities:
            value = float(values[quantity][0, column])
            if math.isnan(value):  # a set of questions is of no category
                continue
            low, high = interval(np.concatenate([block[quantity][:, column] for block in drawn]))
            out.append(
                Row(
                    benchmark=benchmark.name,
                    part=part,
                    scorer=scorer,
                    quantity=quantity,
                    value=value,
                    low=low,
                    high=high,
                    chance=table.chance(quantity, part),
                    blind=None if unseen is None else float(unseen[quantity][0, column]),
                    count=table.count(quantity, part),
                    ties=table.ties(quantity, part),
                )
            )
    return out


class _Table:
    """Quantities (of one scorer) by parts of the benchmark, for any weights of its questions."""

    def __init__(self, benchmark: Benchmark, scores: Scores, scorer: str):
        self.outcomes = outcomes(benchmark, scores, scorer)
        self._auroc = _auroc_inputs(benchmark, scores)
        cells = _CELLS.get(benchmark.form, ())
        # quantity -> the outcomes it is made of
        self._behind = {name: (name,) for name in self.outcomes}
        if cells and cells[0] in self.outcomes:
            self._behind |= {
                MEAN_OF_CELLS: cells,
                **({LEAST_OF_CELLS: cells} if benchmark.form == "choice" else {}),
            }
        self.quantities = (*self._behind, *((AUROC,) if self._auroc else ()))
        categories, self._averages = _parts(benchmark)
        self._rows = {"all": np.arange(len(scores)), **categories}
        self.parts = ("all", *self._averages, *categories)
        if len(categories) == 1:  # the same as all
            self.parts = tuple(
                part for part in self.parts if part not in categories and part != "macro"
            )

    def values(self, weights_RxQ: np.ndarray) -> dict[str, np.ndarray]:
        """Quantity -> (R, parts) percentages, NaN where nothing is counted."""
        found = {
            name: {
                part: _weighted_mean(weights_RxQ, outcome.hits, self._counted(name, part))
                for part in self._rows
            }
            for name, outcome in self.outcomes.items()
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
        if quantity == AUROC:
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
        return float(
            np.mean(
                [
                    outcome.chance[rows].mean()
                    for outcome, rows in self._answers(quantity, part)
                    if rows.size
                ]
            )
        )


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


def _auroc_inputs(benchmark: Benchmark, scores: Scores) -> tuple | None:
    """(scores of the positive cells, of the negative ones, which rows are positive or None), or
    None.
    """
    if not (benchmark.form == "yes_no" or (benchmark.form == "choice" and benchmark.absolute)):
        return None
    cells_QxC = np.array([np.ravel(cell)[:2] for cell in scores], np.float64)
    positive_Q, negative_Q = cells_QxC[:, 0], cells_QxC[:, -1]
    true_Q = (
        np.array([question.true for question in benchmark.questions])
        if benchmark.form == "yes_no"
        else None
    )
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
    return np.divide(
        100.0 * (up * below).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0
    )

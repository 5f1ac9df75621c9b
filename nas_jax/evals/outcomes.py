"""From the scores of a benchmark's questions to what was answered right, in plain numpy.

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

`evals/numbers.py` makes the means of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas_jax.evals.metrics import QUAD_CHANCE
from nas_jax.evals.questions import FORMS, Benchmark, Cells, Question
from nas_jax.utils.errors import DataError

THRESHOLDS = {"itm": 0.0, "probability": 0.5}
"""Scorer -> the score at which a match is as likely as none.

Others only rank: a cosine has no such point.
"""

ABSOLUTE = {"choice": ("p_c", "p_f"), "picture": ("p_pos", "p_neg")}
"""Form -> quantities of single cells, of the first one and of the second."""

Beats = Callable[[np.ndarray | float, np.ndarray | float], np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """One reading of all questions. Arrays of length Q."""

    hits: np.ndarray  # bool
    ties: np.ndarray  # bool: wrong by a tie alone
    chance: np.ndarray  # percent, of random scores
    counted: np.ndarray  # bool: part of the mean over all questions
    counted_in_category: np.ndarray  # bool: part of the mean of its category


# ---------------------------------------------------------------------------------- reading answers


def outcomes(benchmark: Benchmark, scores: Cells, scorer: str) -> dict[str, Outcome]:
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
        if name in ABSOLUTE.get(benchmark.form, ()) and benchmark.form == "picture":
            counted_Q, in_category_Q = _distinct(benchmark, ABSOLUTE["picture"].index(name))
        ties_Q = lenient[name] & ~hits_Q
        out[name] = Outcome(hits_Q, ties_Q, chances[name], counted_Q, in_category_Q)
    for name, sets in benchmark.together.items() if "accuracy" in out else ():
        out[name] = _all_right(benchmark, out["accuracy"], sets)
    return out


def hits(
    benchmark: Benchmark, scores: Cells, threshold: float | None = None, beats: Beats = np.greater
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
        first_Q, second_Q, wrong_Q = cells[:, 0, 0], cells[:, 0, 1], cells[:, 0, 2]
        return {"accuracy": beats(first_Q, wrong_Q) & beats(second_Q, wrong_Q)}
    if benchmark.form == "texts":
        same_Q, first_other_Q, second_other_Q = cells[:, 0, 1], cells[:, 0, 2], cells[:, 1, 2]
        return {"accuracy": beats(same_Q, first_other_Q) & beats(same_Q, second_other_Q)}
    if threshold is None:
        return {}
    true_Q = np.array([question.true for question in benchmark.questions])
    score_Q = cells[:, 0, 0]
    return {"accuracy": np.where(true_Q, beats(score_Q, threshold), beats(threshold, score_Q))}


def _first_beats_rest(
    benchmark: Benchmark, scores: Cells, threshold: float | None, beats: Beats
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
        first, second = ABSOLUTE[benchmark.form]
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
        return out | {name: np.full(len(questions), 50.0) for name in ABSOLUTE[benchmark.form]}
    constant = {"quad": QUAD_CHANCE, "yes_no": {"accuracy": 50.0}}.get(
        benchmark.form, {"accuracy": 100 / 3}
    )
    return {name: np.full(len(questions), chance) for name, chance in constant.items()}


def _distinct(benchmark: Benchmark, position: int) -> tuple[np.ndarray, np.ndarray]:
    """True where a question's (text, picture at `position`) comes for the first time: in all, and
    in its category. Texts are compared as the annotations have them, as the authors do.
    """
    pairs = [
        ((question.raw or question.texts)[0], question.images[position])
        for question in benchmark.questions
    ]
    categories = (question.category for question in benchmark.questions)
    inside = list(zip(pairs, categories, strict=True))
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
        chance_Q[first] = _joint_chance([benchmark.questions[member] for member in members])
    return Outcome(hits_Q, ties_Q, chance_Q, counted_Q, np.zeros(size, bool))


def _joint_chance(questions: Sequence[Question]) -> float:
    """Percent of random scores that are right in all questions of form choice.

    Questions of one picture and caption share its score: it has to beat all their foils.
    """
    foils: dict[tuple, int] = {}
    for one in questions:
        shared = one.images, one.texts[0]
        foils[shared] = foils.get(shared, 0) + len(one.texts) - 1
    return 100.0 * float(np.prod([1.0 / (1 + count) for count in foils.values()]))


def check_shapes(benchmark: Benchmark, scores: Cells) -> None:
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

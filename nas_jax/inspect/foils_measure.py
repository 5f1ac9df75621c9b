"""Which of a run's own foils its model judges worst and best, by the scores of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from nas_jax.data.eval_sets import EvalSet
from nas_jax.evals.outcomes import outcomes
from nas_jax.evals.pairs import foil_benchmark, scored
from nas_jax.evals.scorers import Scorer
from nas_jax.inspect.negatives_found import probability_of
from nas_jax.methods.method import Method
from nas_jax.utils.errors import ConfigError

SCORE = "itm"  # of `Method.score`: the logit of match minus that of no match
WRONG, CLOSE, SURE = 8, 4, 4  # drawn


@dataclass(frozen=True)
class FoilScored:
    """A foil with its scores."""

    image: int  # index into EvalSet.images
    caption: str
    foil: str
    category: str
    caption_match: float  # P(match)
    foil_match: float
    margin: float  # logit of the caption minus that of the foil
    right: bool  # as the evaluation counts it


@dataclass(frozen=True)
class FoilsFound:
    """What is drawn of a set. Each foil stands in one of the groups at most."""

    run: str
    set: str
    count: int
    right: int
    wrong: tuple[FoilScored, ...]  # the surest first
    close: tuple[FoilScored, ...]  # right, the closest first
    sure: tuple[FoilScored, ...]  # right, the surest first


def check_matching(method: Method) -> None:
    """Raises ConfigError where the method has no matching score."""
    if SCORE not in method.pair_scores:
        raise ConfigError(
            f"method {method.config.name} without the score {SCORE}",
            "a method with a matching head",
            "look at a run of ALBEF or NAS",
        )


def chosen_set(sets: Sequence[EvalSet], name: str) -> EvalSet:
    """The set of that name, or the first one with foils. Raises ConfigError where there is none."""
    with_foils = {one.name: one for one in sets if one.foils}
    if not with_foils:
        got, remedy = "no foils in the run's evaluation sets", "set data.foils and data.holdout"
        raise ConfigError(got, "a run with its own foils", remedy)
    if name and name not in with_foils:
        raise ConfigError(f"--set {name}", f"one of {', '.join(with_foils)}", "name one of these")
    return with_foils[name] if name else next(iter(with_foils.values()))


def score_foils(
    scorer: Scorer, eval_set: EvalSet, text_length: int, max_pairs: int = 0
) -> list[FoilScored]:
    """The foils of a set, or `max_pairs` of them taken evenly, as the evaluation scores them.

    Raises ConfigError where the method has no matching score.
    """
    check_matching(scorer.method)
    benchmark = foil_benchmark(eval_set, max_pairs)
    texts = [text for question in benchmark.questions for text in question.texts]
    scores = scorer.on(eval_set, texts, text_length)
    cells = scored(scores, benchmark.form, benchmark.questions, SCORE).seen
    hits = outcomes(benchmark, cells, SCORE)["accuracy"].hits
    found = []
    for question, cell, right in zip(benchmark.questions, cells, hits, strict=True):
        caption, foil = question.texts
        of_caption, of_foil = np.ravel(cell).astype(np.float64).tolist()
        caption_match, foil_match = probability_of(cell[0]).tolist()
        found.append(
            FoilScored(
                question.images[0],
                caption,
                foil,
                question.category,
                caption_match,
                foil_match,
                of_caption - of_foil,
                bool(right),
            )
        )
    return found


def sorted_out(items: Sequence[FoilScored], run: str, name: str, each: int = WRONG) -> FoilsFound:
    """The foils of each group, by their margins; equal ones in the order of the set.

    each: at most this many in a group.
    """
    wrong = sorted((one for one in items if not one.right), key=lambda one: one.margin)
    right = sorted((one for one in items if one.right), key=lambda one: one.margin)
    few = min(CLOSE, each)
    sure = sorted(right[few:], key=lambda one: -one.margin)[: min(SURE, each)]
    groups = tuple(wrong[: min(WRONG, each)]), tuple(right[:few]), tuple(sure)
    return FoilsFound(run, name, len(items), len(right), *groups)


def marked_changes(text: str, other: str) -> list[tuple[str, bool]]:
    """The words of a text, each with whether it is not in `other` at its place."""
    words, others = text.split(), other.split()
    same = SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()
    kept = {place for block in same for place in range(block.a, block.a + block.size)}
    return [(word, place not in kept) for place, word in enumerate(words)]


def headline(found: FoilsFound) -> str:
    """The share that is right."""
    share = 100 * found.right / max(1, found.count)
    return f"{found.right} of {found.count} foils of {found.set} right ({share:.1f} %; chance 50 %)"


def numbers(found: FoilsFound) -> dict[str, Any]:
    """For JSON."""
    return asdict(found)

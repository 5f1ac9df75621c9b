"""Questions under a scorer, and the run's own foils (as in VALSE) and quads (as in Winoground) as
such questions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nas_jax.data.text_differences import why_equal
from nas_jax.evals import metrics
from nas_jax.evals.encodings import BLANK
from nas_jax.evals.functions import TextEncoding
from nas_jax.evals.metrics import Metric
from nas_jax.evals.outcomes import Outcome, outcomes
from nas_jax.evals.questions import Benchmark, Cells, Question, Scored
from nas_jax.evals.readings import evenly
from nas_jax.evals.scorers import SetScores
from nas_jax.utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet

_LOG = logging.getLogger(__name__)


class PairScores(Protocol):
    """What foils and quads need of `SetScores`."""

    @property
    def eval_set(self) -> EvalSet:
        """Where they are from."""
        ...

    def text_indices(self, texts: Sequence[str]) -> np.ndarray:
        """Numbers of texts."""
        ...

    def scores(
        self, name: str, image_indices_P: np.ndarray, text_indices_P: np.ndarray
    ) -> np.ndarray:
        """Scores of P pairs, float32."""
        ...


RESERVED = ("all", "macro", "text", "image", "group")


def scored(scores: SetScores, form: str, questions: Sequence[Question], scorer: str) -> Scored:
    """The scores of all questions, and the same with a blank picture in place of each.

    Of form "texts" they compare text features, by a feature score, and there is nothing to blank.
    """
    if form == "texts":
        return Scored(scorer, _likeness(scores, questions, scorer))
    return Scored(scorer, *_seen_and_blind(scores, questions, scorer))


def _seen_and_blind(
    scores: PairScores, questions: Sequence[Question], scorer: str
) -> tuple[Cells, Cells]:
    shapes = [(len(question.images), len(question.texts)) for question in questions]
    images = [np.repeat(question.images, len(question.texts)) for question in questions]
    texts = [
        np.tile(scores.text_indices(question.texts), len(question.images)) for question in questions
    ]
    images_P, texts_P = np.concatenate(images), np.concatenate(texts)
    # One call, so that a scorer that ranks the same pairs otherwise finds all of them matched.
    both_2P = scores.scores(
        scorer, np.concatenate([images_P, np.full(len(texts_P), BLANK)]), np.tile(texts_P, 2)
    )
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    seen, blind = (
        [part.reshape(shape) for part, shape in zip(np.split(half, ends), shapes, strict=True)]
        for half in np.split(both_2P, 2)
    )
    return seen, blind


def _likeness(scores: SetScores, questions: Sequence[Question], scorer: str) -> Cells:
    features = [scores.text_features(scores.text_indices(one.texts)) for one in questions]
    return [scores.method.compare(scorer, one, one).astype(np.float32) for one in features]


def foil_metrics(scores: PairScores, scorer: str, max_pairs: int = 0) -> list[Metric]:
    """Percent of pairs where the caption beats its foil; [] where the set has no foils.

    Quantities: "all" (mean over pairs) and, with two or more categories, "macro" (mean over
    categories) and one a category. Averages of published papers are of either kind, so compare like
    with like.
    """
    benchmark = foil_benchmark(scores.eval_set, max_pairs)
    if not benchmark.questions:
        return []
    seen, blind = (found["accuracy"] for found in _outcomes(scores, benchmark, scorer))
    names = benchmark.name, "foils", scorer
    each = [
        _mean((*names, category), seen, blind, rows) for category, rows in _categories(benchmark)
    ]
    whole = _mean((*names, "all"), seen, blind)
    if len(each) < 2:
        return [whole]
    macro = Metric(
        *names,
        "macro",
        value=float(np.mean([one.value for one in each])),
        chance=metrics.PAIR_CHANCE,
        blind=float(np.mean([one.blind for one in each])),
        count=whole.count,
    )
    return [whole, macro, *each]


def quad_metrics(scores: PairScores, scorer: str, max_pairs: int = 0) -> list[Metric]:
    """Winoground's text, image and group score, also by category where there are two or more; []
    without quads.

    Blind they are 0 by construction: a score that sees no image gives both images of a quad the
    same answer.
    """
    benchmark = quad_benchmark(scores.eval_set, max_pairs)
    if not benchmark.questions:
        return []
    seen, blind = _outcomes(scores, benchmark, scorer)
    names, members = (benchmark.name, "quads", scorer), _categories(benchmark)
    out = [_mean((*names, name), seen[name], blind[name]) for name in seen]
    for category, rows in members if len(members) > 1 else ():
        out += [
            _mean((*names, f"{category}/{name}"), seen[name], blind[name], rows) for name in seen
        ]
    return out


def foil_benchmark(eval_set: EvalSet, max_pairs: int = 0) -> Benchmark:
    """The foils of an `EvalSet`, or evenly taken `max_pairs` of them, as questions of form
    choice.
    """
    chosen = evenly(len(eval_set.foils), max_pairs)
    foils = ((index, eval_set.foils[index]) for index in chosen)
    questions = (
        Question(str(i), foil.category, (foil.image,), (foil.caption, foil.foil))
        for i, foil in foils
    )
    return Benchmark(eval_set.name, "choice", tuple(questions), eval_set.images, {})


def quad_benchmark(eval_set: EvalSet, max_pairs: int = 0) -> Benchmark:
    """The quads of an `EvalSet`, or evenly taken `max_pairs` of them, as questions of form quad."""
    chosen = evenly(len(eval_set.quads), max_pairs)
    quads = ((index, eval_set.quads[index]) for index in chosen)
    questions = (
        Question(
            str(i), quad.category, (quad.image_0, quad.image_1), (quad.caption_0, quad.caption_1)
        )
        for i, quad in quads
    )
    named = eval_set.name, "quad", tuple(questions)
    return Benchmark(*named, eval_set.images, {}, headline="all/group")


def _outcomes(scores: PairScores, benchmark: Benchmark, scorer: str) -> list[dict[str, Outcome]]:
    """With the pictures, and with a blank one."""
    both = _seen_and_blind(scores, benchmark.questions, scorer)
    return [outcomes(benchmark, cells, scorer) for cells in both]


def _mean(
    names: tuple[str, str, str, str],
    seen: Outcome,
    blind: Outcome,
    rows: np.ndarray | slice = slice(None),
) -> Metric:
    hits = seen.hits[rows]
    return Metric(
        *names,
        value=metrics.percent(hits),
        chance=float(seen.chance[0]),
        blind=metrics.percent(blind.hits[rows]),
        count=len(hits),
    )


def _categories(benchmark: Benchmark) -> list[tuple[str, np.ndarray]]:
    """Rows of each category, sorted by name."""
    # keys have slashes
    categories = [question.category.replace("/", "-") for question in benchmark.questions]
    for name in RESERVED:
        if name in categories:
            got = f"a category named {name!r} in evaluation set {benchmark.name!r}"
            remedy = "rename the category in the annotation file"
            raise DataError(got, f"a name other than {RESERVED}", remedy)
    column = np.array(categories)
    return [(name, np.flatnonzero(column == name)) for name in sorted(set(categories))]


def check_answers_differ(benchmark: Benchmark, tokenizer: TextEncoding, text_length: int) -> None:
    """Fails where cutting to `text_length` tokens makes a right and a wrong text the same; warns of
    other such pairs.

    The word that decides is often the last one (VALSE's coreference), so a length that is enough
    for training can silently make pairs unsolvable.
    """
    pairs = [
        pair
        for question in benchmark.questions
        for pair in _must_differ(benchmark.form, question.texts)
    ]
    collapsed = _same_tokens(pairs, tokenizer, text_length)
    if not collapsed:
        return
    # Pairs that differ at four times the length were cut; the others differ in case or spaces or
    # unknown characters.
    still = set(_same_tokens(collapsed, tokenizer, 4 * text_length))
    for pair in collapsed:
        if pair not in still:
            got = f"text_length={text_length} cuts {pair[0]!r} and its foil in {benchmark.name!r}"
            remedy = "raise the text length of the evaluation (VALSE fits in 64)"
            raise ConfigError(f"{got} to the same tokens", "pairs that differ", remedy)
    reason, remedy = why_equal(*collapsed[0], tokenizer)
    _LOG.warning(
        "%s: %d of %d pairs have the same tokens on both sides and count as wrong, e.g. %r and "
        "%r: %s. Remedy: %s.",
        *(benchmark.name, len(collapsed), len(pairs), *collapsed[0], reason, remedy),
    )


def longer_than(length: int, texts: Sequence[str], tokenizer: TextEncoding) -> int:
    """How many texts have more than `length` tokens."""
    _, mask_MxL = tokenizer.encode(list(texts), 4 * length)
    return int((np.asarray(mask_MxL).sum(axis=1) > length).sum())


def _must_differ(form: str, texts: tuple[str, ...]) -> list[tuple[str, str]]:
    """Pairs of a right and a wrong text; of a quad, its two."""
    right = 2 if form in ("two_true", "texts") else 1
    return [(one, other) for one in texts[:right] for other in texts[right:]]


def _same_tokens(
    pairs: list[tuple[str, str]], tokenizer: TextEncoding, length: int
) -> list[tuple[str, str]]:
    """The pairs whose texts are the same to a model."""
    if not pairs:
        return []
    (first_ids, first_mask), (second_ids, second_mask) = (
        map(np.asarray, tokenizer.encode(list(side), length)) for side in zip(*pairs, strict=True)
    )
    same_PxL = (first_ids == second_ids) & (first_mask == second_mask)
    return [pair for pair, same in zip(pairs, same_PxL.all(axis=1), strict=True) if same]

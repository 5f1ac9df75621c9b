"""Image-to-text and text-to-image retrieval: a feature score over all pairs, and pair scores over
the best of it.

Protocol of ALBEF (Li et al. 2021, section 5; ALBEF code, Retrieval.py): all candidates are ranked
by ITC, the first k of each query are ranked again by the logit of a match, the rest stay behind
them. Here the rest keep their ITC order, and ties count as misses (see `metrics`). What ranks all
candidates for the other scorers is the method's first feature score.

Queries, candidates and right answers are a `Task` (`readings.py`). The table of all pairs never
stands in memory: it is made and ranked in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nas_jax.evals import metrics, places
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.encodings import BLANK
from nas_jax.evals.metrics import DIRECTIONS, Metric, Ranks
from nas_jax.evals.readings import Task, make_task
from nas_jax.evals.scorers import SetScores
from nas_jax.utils.errors import ConfigError

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet

BLOCK = 256  # rows of the table of all pairs at a time


def retrieval_metrics(scores: SetScores[EvalSet], config: EvalConfig) -> list[Metric]:
    """Recall at 1, 5 and 10 in both directions, for each scorer; [] where the set has no captions.

    Args:
      scores: the set and the model that scores it.
      config: its scorers, by name, and how much is ranked.
    """
    if not any(scores.eval_set.captions):
        return []
    task = make_task(scores, max_images=config.max_images)
    return [
        metric
        for found in rank(scores, [task], config.scorers, config.rerank_k)
        for metric in metrics.recalls(found, scores.eval_set.name, task.name, f"{found.direction}_")
    ]


@dataclass(frozen=True)
class _FirstStage:
    """What a feature score says of R queries."""

    ranks_R: np.ndarray
    shortlist_Rxk: np.ndarray
    right_Rxk: np.ndarray
    places: list[np.ndarray]  # of all right candidates, of judged queries; else []

    def reranked(self, again_Rxk: np.ndarray) -> _FirstStage:
        """What follows where the shortlist has these second scores."""
        ranks_R = metrics.reranked_ranks(self.ranks_R, self.right_Rxk, again_Rxk)
        found = self.places and places.reranked_places(self.places, self.right_Rxk, again_Rxk)
        return replace(self, ranks_R=ranks_R, places=found)


@dataclass(frozen=True)
class _Ranked:
    """A task under a feature score: looking for texts, for images, and for texts blindly."""

    to_text: _FirstStage
    to_image: _FirstStage
    blind: _FirstStage

    def stages(self) -> tuple[_FirstStage, ...]:
        return self.to_text, self.to_image, self.blind


def rank(
    scores: SetScores, tasks: Sequence[Task], scorers: Sequence[str], rerank_k: int
) -> list[Ranks]:
    """Ranks of all tasks under all scorers; a pair that several of them shortlist is scored once.

    Blind: the blank image's ranking stands for every image's (image to text); all images are blank,
    hence tie, and nothing is found (text to image). Raises ConfigError where nothing ranks all.
    """
    features = scores.method.feature_scores
    if not features:
        got, expected = (
            "retrieval under a method without feature scores",
            "one to rank all pairs by",
        )
        raise ConfigError(got, expected, "set eval.retrieval=False")
    again = [name for name in scorers if name not in features]
    needed = {name for name in scorers if name in features} | ({features[0]} if again else set())
    ranked = {
        name: [_rank_all(scores, task, name, rerank_k) for task in tasks]
        for name in features
        if name in needed
    }
    if again:
        pairs = [_pairs(*both) for both in zip(tasks, ranked[features[0]], strict=True)]
        images, texts = (np.concatenate(side) for side in zip(*pairs, strict=True))
    out = []
    for scorer in scorers:
        if scorer in ranked:
            for task, first in zip(tasks, ranked[scorer], strict=True):
                out += _both_directions(task, scorer, first.stages())
            continue
        second = scores.scores(scorer, images, texts)
        for task, first in zip(tasks, ranked[features[0]], strict=True):
            stages = []
            for stage in first.stages():
                own, second = np.split(second, [stage.shortlist_Rxk.size])
                stages.append(stage.reranked(own.reshape(stage.shortlist_Rxk.shape)))
            out += _both_directions(task, scorer, stages)
    return out


def _both_directions(task: Task, scorer: str, stages: Sequence[_FirstStage]) -> list[Ranks]:
    """stages: those of `_Ranked.stages`, ranked again or not."""
    to_text, to_image, blind = stages
    right_N, right_M = (np.array([len(right) for right in task.right(way)]) for way in DIRECTIONS)
    texts, images = (task.candidates(way) for way in DIRECTIONS)
    all_tie_M = images - right_M  # all images are blank, and ties count against
    tied = [np.arange(wrong, images) for wrong in all_tie_M] if to_image.places else []
    return [
        Ranks(
            *(scorer, DIRECTIONS[0], to_text.ranks_R, right_N, texts, blind.ranks_R, task.name),
            task.at_r(DIRECTIONS[0], to_text.places, blind.places),
        ),
        Ranks(
            *(scorer, DIRECTIONS[1], to_image.ranks_R, right_M, images, all_tie_M, task.name),
            task.at_r(DIRECTIONS[1], to_image.places, tied),
        ),
    ]


def _rank_all(scores: SetScores, task: Task, name: str, k: int) -> _Ranked:
    """All candidates by a feature score."""
    images_N, texts_M = task.images_N, task.texts_M
    asking_Q, wanted_Q = images_N[task.queries(DIRECTIONS[0])], texts_M[task.queries(DIRECTIONS[1])]
    scores.image_features(images_N)  # all at once, the blocks below find them
    blank_1xM = scores.matrix(name, np.array([BLANK]), texts_M)
    right_texts, right_images = (task.right(way) for way in DIRECTIONS)
    deep = task.judgement is not None
    return _Ranked(
        _first_stage(
            lambda rows: scores.matrix(name, asking_Q[rows], texts_M), right_texts, k, deep
        ),
        _first_stage(
            lambda rows: scores.matrix(name, images_N, wanted_Q[rows]).T, right_images, k, deep
        ),
        _first_stage(
            lambda rows: np.broadcast_to(blank_1xM, (len(rows), len(texts_M))), right_texts, k, deep
        ),
    )


def _first_stage(
    block: Callable[[np.ndarray], np.ndarray], right: list[np.ndarray], k: int, deep: bool
) -> _FirstStage:
    """Ranks and shortlists in blocks of rows.

    block: numbers of queries -> their scores (rows, C). deep: with the places of all right ones.
    """
    parts, found = [], []
    for start in range(0, len(right), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(right)))
        scores_RxC = block(rows)
        positives_RxC = np.zeros(scores_RxC.shape, bool)
        for row, query in enumerate(rows):
            positives_RxC[row, right[query]] = True
        short_Rxk = metrics.shortlist(scores_RxC, positives_RxC, k)
        right_Rxk = np.take_along_axis(positives_RxC, short_Rxk, axis=1)
        parts.append((metrics.best_ranks(scores_RxC, positives_RxC), short_Rxk, right_Rxk))
        if deep:
            found += places.right_places(scores_RxC, positives_RxC)
    ranks_R, short_Rxk, right_Rxk = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _FirstStage(ranks_R, short_Rxk, right_Rxk, found)


def _pairs(task: Task, ranked: _Ranked) -> tuple[np.ndarray, np.ndarray]:
    """Images and texts of all shortlists, one after the other."""
    to_text_Qxk, to_image_Qxk, blind_Qxk = (one.shortlist_Rxk for one in ranked.stages())
    asking_Q, wanted_Q = (task.queries(way) for way in DIRECTIONS)
    images = [
        np.repeat(task.images_N[asking_Q], to_text_Qxk.shape[1]),
        task.images_N[to_image_Qxk].ravel(),
        np.full(blind_Qxk.size, BLANK),
    ]
    texts = [
        task.texts_M[to_text_Qxk].ravel(),
        np.repeat(task.texts_M[wanted_Q], to_image_Qxk.shape[1]),
        task.texts_M[blind_Qxk].ravel(),
    ]
    return np.concatenate(images), np.concatenate(texts)

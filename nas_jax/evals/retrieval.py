"""Image-to-text and text-to-image retrieval: a feature score over all pairs, and pair scores over
the best of it.

Protocol of ALBEF (Li et al. 2021, section 5; ALBEF code, Retrieval.py): all candidates are ranked
by ITC, the first k of each query are ranked again by the logit of a match, the rest stay behind
them. Here the rest keep their ITC order, and ties count as misses (see `metrics`). What ranks all
candidates for the other scorers is the method's first feature score.

Each caption of each image is one text query and one text candidate. Two rules say what is right:

``own``      the published one: a caption is right for its own image alone.
``wording``  a picture is right for a caption of its own or of a picture with the same id
             (`EvalSet.image_ids`); looking for a text, any text with the wording of a right one is
             right too.

The table of all pairs never stands in memory: it is made and ranked in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nas_jax.evals import metrics
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.encodings import BLANK
from nas_jax.evals.metrics import DIRECTIONS, Metric, Ranks
from nas_jax.evals.scorers import SetScores
from nas_jax.utils.errors import ConfigError

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet

BLOCK = 256  # rows of the table of all pairs at a time


def evenly(count: int, limit: int) -> np.ndarray:
    """At most `limit` of the indices 0 .. count - 1, spread evenly; all of them for limit 0."""
    if limit == 0 or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


@dataclass(frozen=True)
class Task:
    """One reading of a retrieval set: its queries, candidates and right answers."""

    name: str  # second part of the keys, like "retrieval" or "retrieval-25010-own"
    images_N: np.ndarray  # indices into the set's images
    texts_M: np.ndarray  # numbers of the captions' wordings, in the order of the images
    right_texts: list[np.ndarray]  # columns of the right texts of each image
    right_images: list[np.ndarray]  # columns of the right images of each text
    owner_M: np.ndarray  # column of the image that each text is a caption of

    def right(self, direction: str) -> list[np.ndarray]:
        """The right candidates of each query."""
        return self.right_texts if direction == DIRECTIONS[0] else self.right_images


def make_task(
    scores: SetScores,
    name: str = "retrieval",
    rule: str = "wording",
    max_images: int = 0,
    max_captions: int = 0,
) -> Task | None:
    """A task over the images with captions; None where there are none.

    Args:
      scores: gives the set and the numbers of its texts.
      name: of the task.
      rule: "own" or "wording", see the top of this file.
      max_images: at most so many, taken evenly; 0: all.
      max_captions: the first so many of each image; 0: all.
    """
    eval_set = scores.eval_set
    with_captions = np.array(
        [index for index, captions in enumerate(eval_set.captions) if captions], np.int64
    )
    if not len(with_captions):
        return None
    images_N = with_captions[evenly(len(with_captions), max_images)]
    captions = [eval_set.captions[image][: max_captions or None] for image in images_N]
    texts_M = scores.text_indices([caption for texts in captions for caption in texts])
    counts_N = [len(texts) for texts in captions]
    owner_M = np.repeat(np.arange(len(images_N)), counts_N)
    right = right_answers(eval_set, images_N, texts_M, owner_M, rule)
    return Task(name, images_N, texts_M, *right, owner_M)


def right_answers(
    eval_set: EvalSet, images_N: np.ndarray, texts_M: np.ndarray, owner_M: np.ndarray, rule: str
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Columns of the right texts of each image, and of the right images of each text.

    Args:
      eval_set: gives the ids of the images.
      images_N: the images of the test.
      texts_M: a number for the wording of each caption of each of these images, in their order.
      owner_M: column of the image that each text is a caption of, rising.
      rule: "own" or "wording".
    """
    own = np.split(np.arange(len(texts_M)), np.searchsorted(owner_M, np.arange(1, len(images_N))))
    if rule == "own":
        return own, [np.array([owner]) for owner in owner_M]
    ids_N = np.asarray(eval_set.image_ids)[images_N] if eval_set.image_ids else images_N
    same_id, same_wording = _columns_by(ids_N), _columns_by(texts_M)
    right_texts = []
    for image_id in ids_N:
        wordings = np.unique(texts_M[np.concatenate([own[image] for image in same_id[image_id]])])
        right_texts.append(
            np.unique(np.concatenate([same_wording[wording] for wording in wordings]))
        )
    return right_texts, [same_id[ids_N[owner]] for owner in owner_M]


def _columns_by(values: np.ndarray) -> dict[int, np.ndarray]:
    """Value -> where it stands."""
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True))


def retrieval_metrics(scores: SetScores, config: EvalConfig) -> list[Metric]:
    """Recall at 1, 5 and 10 in both directions, for each scorer; [] where the set has no captions.

    Args:
      scores: the set and the model that scores it.
      config: its scorers, by name, and how much is ranked.
    """
    task = make_task(scores, max_images=config.max_images)
    if task is None:
        return []
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
                out += _both_directions(task, scorer, [one.ranks_R for one in first.stages()])
            continue
        second = scores.scores(scorer, images, texts)
        for task, first in zip(tasks, ranked[features[0]], strict=True):
            ranks = []
            for stage in first.stages():
                own, second = np.split(second, [stage.shortlist_Rxk.size])
                again_Rxk = own.reshape(stage.shortlist_Rxk.shape)
                ranks.append(metrics.reranked_ranks(stage.ranks_R, stage.right_Rxk, again_Rxk))
            out += _both_directions(task, scorer, ranks)
    return out


def _both_directions(task: Task, scorer: str, ranks: list[np.ndarray]) -> list[Ranks]:
    """ranks: those of `_Ranked.stages`."""
    to_text, to_image, blind = ranks
    right_N, right_M = (np.array([len(right) for right in task.right(way)]) for way in DIRECTIONS)
    images, texts = len(task.images_N), len(task.texts_M)
    all_tie_M = images - right_M  # all images are blank, and ties count against
    return [
        Ranks(scorer, DIRECTIONS[0], to_text, right_N, texts, blind, task.name),
        Ranks(scorer, DIRECTIONS[1], to_image, right_M, images, all_tie_M, task.name),
    ]


def _rank_all(scores: SetScores, task: Task, name: str, k: int) -> _Ranked:
    """All candidates by a feature score."""
    images_N, texts_M = task.images_N, task.texts_M
    scores.image_features(images_N)  # all at once, the blocks below find them
    blank_1xM = scores.matrix(name, np.array([BLANK]), texts_M)
    return _Ranked(
        _first_stage(
            lambda rows: scores.matrix(name, images_N[rows], texts_M), task.right_texts, k
        ),
        _first_stage(
            lambda rows: scores.matrix(name, images_N, texts_M[rows]).T, task.right_images, k
        ),
        _first_stage(
            lambda rows: np.broadcast_to(blank_1xM, (len(rows), len(texts_M))), task.right_texts, k
        ),
    )


def _first_stage(
    block: Callable[[np.ndarray], np.ndarray], right: list[np.ndarray], k: int
) -> _FirstStage:
    """Ranks and shortlists in blocks of rows.

    block: numbers of queries -> their scores (rows, C).
    """
    parts = []
    for start in range(0, len(right), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(right)))
        scores_RxC = block(rows)
        positives_RxC = np.zeros(scores_RxC.shape, bool)
        for row, query in enumerate(rows):
            positives_RxC[row, right[query]] = True
        short_Rxk = metrics.shortlist(scores_RxC, positives_RxC, k)
        right_Rxk = np.take_along_axis(positives_RxC, short_Rxk, axis=1)
        parts.append((metrics.best_ranks(scores_RxC, positives_RxC), short_Rxk, right_Rxk))
    return _FirstStage(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _pairs(task: Task, ranked: _Ranked) -> tuple[np.ndarray, np.ndarray]:
    """Images and texts of all shortlists, one after the other."""
    to_text_Nxk, to_image_Mxk, blind_Nxk = (one.shortlist_Rxk for one in ranked.stages())
    images = [
        np.repeat(task.images_N, to_text_Nxk.shape[1]),
        task.images_N[to_image_Mxk].ravel(),
        np.full(blind_Nxk.size, BLANK),
    ]
    texts = [
        task.texts_M[to_text_Nxk].ravel(),
        np.repeat(task.texts_M, to_image_Mxk.shape[1]),
        task.texts_M[blind_Nxk].ravel(),
    ]
    return np.concatenate(images), np.concatenate(texts)

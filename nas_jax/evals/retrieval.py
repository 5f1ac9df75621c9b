"""Image-to-text and text-to-image retrieval: ITC over all pairs, and the matching head over the
best of ITC.

Protocol of ALBEF (Li et al. 2021, section 5; ALBEF code, Retrieval.py): all candidates are ranked
by ITC, the first k of each query are ranked again by the logit of a match, the rest stay behind
them. Here the rest keep their ITC order, and ties count as misses (see `metrics`).

Each caption of each image is one text query and one text candidate. Two rules say what is right:

``own``      the published one: a caption is right for its own image alone.
``wording``  a picture is right for a caption of its own or of a picture with the same id (`EvalSet.image_ids`); looking
             for a text, any text with the wording of a right one is right too.

The table of all pairs never stands in memory: it is made and ranked in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nas_jax.evals import metrics
from nas_jax.evals.metrics import Metric
from nas_jax.evals.scorers import BLANK, SetScores

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet

CUTS = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")
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
        return self.right_texts if direction == "image_to_text" else self.right_images


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
    return Task(
        name, images_N, texts_M, *right_answers(eval_set, images_N, texts_M, owner_M, rule), owner_M
    )


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


@dataclass(frozen=True)
class Ranks:
    """Ranks (0 = first) of the best right candidate of each query of one direction, under one
    scorer.
    """

    task: str
    scorer: str
    direction: str
    ranks: np.ndarray
    blind: np.ndarray  # the same without pictures
    right: np.ndarray  # number of right candidates of each query
    candidates: int

    def metrics(self, set_name: str) -> list[Metric]:
        """Recall at 1, 5 and 10."""
        return [
            Metric(
                key=f"{set_name}/{self.task}/{self.scorer}/{self.direction}_r@{k}",
                value=metrics.recall_at_k(self.ranks, k),
                chance=metrics.recall_chance(self.right, self.candidates, k),
                blind=metrics.recall_at_k(self.blind, k),
                count=len(self.ranks),
            )
            for k in CUTS
        ]


def retrieval_metrics(
    scores: SetScores,
    scorers: tuple[str, ...] = ("itc", "itm"),
    rerank_k: int = 128,
    max_images: int = 0,
) -> list[Metric]:
    """Recall at 1, 5 and 10 in both directions, for each scorer; [] where the set has no captions.

    Args:
      scores: the set and the model that scores it.
      scorers: "itc", or others that rank again what ITC ranks first.
      rerank_k: candidates a query that is ranked again.
      max_images: see `EvalConfig`.
    """
    task = make_task(scores, max_images=max_images)
    if task is None:
        return []
    return [
        metric
        for found in rank(scores, [task], scorers, rerank_k)
        for metric in found.metrics(scores.eval_set.name)
    ]


def rank(
    scores: SetScores, tasks: Sequence[Task], scorers: Sequence[str], rerank_k: int
) -> list[Ranks]:
    """Ranks of all tasks under all scorers; a pair that several of them shortlist is matched once.

    Blind: the blank image's ranking stands for every image's (image to text); all images are blank,
    hence tie, and nothing is found (text to image).
    """
    stages = {}
    for task in tasks:
        scores.image_features(task.images_N)  # all at once, the blocks below find them
        to_text = _first_stage(
            lambda rows, task=task: scores.itc_matrix(task.images_N[rows], task.texts_M),
            *(task.right_texts, rerank_k),
        )
        to_image = _first_stage(
            lambda rows, task=task: scores.itc_matrix(task.images_N, task.texts_M[rows]).T,
            *(task.right_images, rerank_k),
        )
        blank_1xM = scores.itc_matrix(np.array([BLANK]), task.texts_M)
        blind = _first_stage(
            lambda rows, blank=blank_1xM: np.broadcast_to(blank, (len(rows), blank.shape[1])),
            *(task.right_texts, rerank_k),
        )
        stages[task.name] = to_text, to_image, blind
    if any(scorer != "itc" for scorer in scorers):
        asked = [_pairs(task, *stages[task.name]) for task in tasks]
        images, texts = (np.concatenate([one[side] for one in asked]) for side in (0, 1))
    out = []
    for scorer in scorers:
        second = None if scorer == "itc" else scores.scores(scorer, images, texts)
        for task in tasks:
            ranks = []
            for stage in stages[task.name]:
                if second is None:
                    ranks.append(stage.ranks_R)
                    continue
                mine, second = np.split(second, [stage.shortlist_Rxk.size])
                again_Rxk = mine.reshape(stage.shortlist_Rxk.shape)
                ranks.append(metrics.reranked_ranks(stage.ranks_R, stage.right_Rxk, again_Rxk))
            to_text, to_image, blind = ranks
            right_N, right_M = (
                np.array([len(right) for right in task.right(name)]) for name in DIRECTIONS
            )
            all_tie_M = len(task.images_N) - right_M  # all images are blank, and ties count against
            out += [
                Ranks(task.name, scorer, DIRECTIONS[0], to_text, blind, right_N, len(task.texts_M)),
                Ranks(
                    task.name,
                    scorer,
                    DIRECTIONS[1],
                    to_image,
                    all_tie_M,
                    right_M,
                    len(task.images_N),
                ),
            ]
    return out


@dataclass(frozen=True)
class _Stage:
    """What the first score says of R queries."""

    ranks_R: np.ndarray
    shortlist_Rxk: np.ndarray
    right_Rxk: np.ndarray


def _first_stage(
    block: Callable[[np.ndarray], np.ndarray], right: list[np.ndarray], k: int
) -> _Stage:
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
    return _Stage(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _pairs(
    task: Task, to_text: _Stage, to_image: _Stage, blind: _Stage
) -> tuple[np.ndarray, np.ndarray]:
    """Images and texts of all shortlists, one after the other."""
    images = [
        np.repeat(task.images_N, to_text.shortlist_Rxk.shape[1]),
        task.images_N[to_image.shortlist_Rxk].ravel(),
        np.full(blind.shortlist_Rxk.size, BLANK),
    ]
    texts = [
        task.texts_M[to_text.shortlist_Rxk].ravel(),
        np.repeat(task.texts_M, to_image.shortlist_Rxk.shape[1]),
        task.texts_M[blind.shortlist_Rxk].ravel(),
    ]
    return np.concatenate(images), np.concatenate(texts)

"""Readings of a retrieval set: which pictures and captions are queries and candidates, and what is
right.

Each caption of each image is one text query and one text candidate. Two rules say what is right:

``own``      the published one: a caption is right for its own image alone.
``wording``  a picture is right for a caption of its own or of a picture with the same id
             (`EvalSet.image_ids`); looking for a text, any text with the wording of a right one is
             right too.

A `Judgement` takes the place of a rule: then only the pictures and captions that it names are
queries, and mAP@R and R-Precision stand beside recall.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nas_jax.evals import places
from nas_jax.evals.judgements import Judgement
from nas_jax.evals.metrics import DIRECTIONS
from nas_jax.evals.scorers import SetScores

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet


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
    right_texts: list[np.ndarray]  # columns of the right texts of each image that is a query
    right_images: list[np.ndarray]  # columns of the right images of each text that is a query
    owner_M: np.ndarray  # column of the image that each text is a caption of
    judgement: Judgement | None = None  # says which are queries; None: all

    def right(self, direction: str) -> list[np.ndarray]:
        """The right candidates of each query."""
        return self.right_texts if direction == DIRECTIONS[0] else self.right_images

    def queries(self, direction: str) -> np.ndarray:
        """The columns of the images or texts that are queries."""
        if self.judgement is not None:
            return self.judgement.answers[direction].queries_Q
        return np.arange(len(self.right(direction)))

    def candidates(self, direction: str) -> int:
        """Number of candidates of each query."""
        return len(self.texts_M if direction == DIRECTIONS[0] else self.images_N)

    def at_r(
        self, direction: str, found: places.Places, blind: places.Places | None = None
    ) -> places.AtR | None:
        """mAP@R and R-Precision of judged queries; None of others."""
        if self.judgement is None:
            return None
        r_Q = self.judgement.answers[direction].r_Q
        return places.at_r(found, r_Q, self.candidates(direction), blind)


def make_task(
    scores: SetScores[EvalSet],
    name: str = "retrieval",
    rule: str = "wording",
    max_images: int = 0,
    max_captions: int = 0,
    judgement: Judgement | None = None,
) -> Task:
    """A task over the images with captions, of which there is at least one.

    Args:
      scores: gives the set and the numbers of its texts.
      name: of the task.
      rule: "own" or "wording", see the top of this file.
      max_images: at most so many, taken evenly; 0: all.
      max_captions: the first so many of each image; 0: all.
      judgement: what is right, in place of the rule.
    """
    eval_set = scores.eval_set
    with_captions = np.array(
        [index for index, captions in enumerate(eval_set.captions) if captions], np.int64
    )
    images_N = with_captions[evenly(len(with_captions), max_images)]
    captions = [eval_set.captions[image][: max_captions or None] for image in images_N]
    texts_M = scores.text_indices([caption for texts in captions for caption in texts])
    counts_N = [len(texts) for texts in captions]
    owner_M = np.repeat(np.arange(len(images_N)), counts_N)
    right = right_answers(eval_set, images_N, texts_M, owner_M, rule, judgement)
    return Task(name, images_N, texts_M, *right, owner_M, judgement)


def right_answers(
    eval_set: EvalSet,
    images_N: np.ndarray,
    texts_M: np.ndarray,
    owner_M: np.ndarray,
    rule: str,
    judgement: Judgement | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Columns of the right texts of each image query, and of the right images of each text query.

    Args:
      eval_set: gives the ids of the images.
      images_N: the images of the test.
      texts_M: a number for the wording of each caption of each of these images, in their order.
      owner_M: column of the image that each text is a caption of, rising.
      rule: "own" or "wording".
      judgement: what is right, in place of the rule.
    """
    if judgement is not None:
        return judgement.right()
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

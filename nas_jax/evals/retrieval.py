"""Image-to-text and text-to-image retrieval: ITC over all pairs, and ITM over the best of ITC.

Protocol of ALBEF (Li et al. 2021, section 5; ALBEF code, Retrieval.py): all candidates are ranked by ITC, the first k
of each query are ranked again by ITM, the rest stay behind them. Here the rest keep their ITC order, and ties count as
misses (see `metrics`).

Each caption of each image is one text query and one text candidate. A picture is right for a caption of its own or of
a picture with the same id (`EvalSet.image_ids`). Looking for a text, any text with the wording of a right one is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nas_jax.evals import metrics
from nas_jax.evals.metrics import Metric
from nas_jax.evals.scorers import BLANK, SetScores

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet

CUTS = (1, 5, 10)


def evenly(count: int, limit: int) -> np.ndarray:
    """At most `limit` of the indices 0 .. count - 1, spread evenly; all of them for limit 0."""
    if limit == 0 or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def retrieval_metrics(
    scores: SetScores, scorers: tuple[str, ...] = ("itc", "itm"), rerank_k: int = 128, max_images: int = 0
) -> list[Metric]:
    """Recall at 1, 5 and 10 in both directions, for each scorer; [] where the set has no captions.

    Blind: the blank image's ranking stands for every image's (image to text); all images are blank, hence tie, and
    nothing is found (text to image).

    Args:
      scores: the set and the model that scores it.
      scorers: "itc", "itm" or both.
      rerank_k: candidates a query that "itm" ranks again.
      max_images: see `EvalConfig`.
    """
    eval_set = scores.eval_set
    with_captions = np.array([index for index, captions in enumerate(eval_set.captions) if captions], np.int64)
    if not len(with_captions):
        return []
    images_N = with_captions[evenly(len(with_captions), max_images)]
    texts_M = scores.text_indices([caption for image in images_N for caption in eval_set.captions[image]])
    positives_NxM, positives_MxN = right_answers(eval_set, images_N, texts_M)

    itc_NxM = scores.itc_matrix(images_N, texts_M)
    blind_NxM = np.broadcast_to(scores.itc_matrix(np.array([BLANK]), texts_M), itc_NxM.shape)
    out = []
    for scorer in scorers:
        if scorer == "itc":
            to_text_N = metrics.best_ranks(itc_NxM, positives_NxM)
            to_image_M = metrics.best_ranks(itc_NxM.T, positives_MxN)
            blind_to_text_N = metrics.best_ranks(blind_NxM, positives_NxM)
        else:
            shortlists = [
                metrics.shortlist(itc_NxM, positives_NxM, rerank_k),
                metrics.shortlist(itc_NxM.T, positives_MxN, rerank_k),
                metrics.shortlist(blind_NxM, positives_NxM, rerank_k),
            ]
            queries = [images_N, texts_M, np.full(len(images_N), BLANK)]
            asked = [np.repeat(query, short.shape[1]) for query, short in zip(queries, shortlists, strict=True)]
            pair_images = [asked[0], images_N[shortlists[1]].ravel(), asked[2]]
            pair_texts = [texts_M[shortlists[0]].ravel(), asked[1], texts_M[shortlists[2]].ravel()]
            # One call, so that a pair that both directions shortlist is matched once.
            flat = scores.scores(scorer, np.concatenate(pair_images), np.concatenate(pair_texts))
            parts = np.split(flat, np.cumsum([short.size for short in shortlists])[:-1])
            itm = [part.reshape(short.shape) for part, short in zip(parts, shortlists, strict=True)]
            to_text_N = metrics.reranked_ranks(itc_NxM, shortlists[0], itm[0], positives_NxM)
            to_image_M = metrics.reranked_ranks(itc_NxM.T, shortlists[1], itm[1], positives_MxN)
            blind_to_text_N = metrics.reranked_ranks(blind_NxM, shortlists[2], itm[2], positives_NxM)
        blind_to_image_M = (~positives_MxN).sum(axis=1)  # all tie, and ties count against
        for direction, ranks, blind, positives in (
            ("image_to_text", to_text_N, blind_to_text_N, positives_NxM),
            ("text_to_image", to_image_M, blind_to_image_M, positives_MxN),
        ):
            for k in CUTS:
                out.append(
                    Metric(
                        key=f"{eval_set.name}/retrieval/{scorer}/{direction}_r@{k}",
                        value=metrics.recall_at_k(ranks, k),
                        chance=metrics.recall_chance(positives.sum(axis=1), positives.shape[1], k),
                        blind=metrics.recall_at_k(blind, k),
                        count=len(ranks),
                    )
                )
    return out


def right_answers(eval_set: EvalSet, images_N: np.ndarray, texts_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which candidates are right: (N, M) bool for image queries and (M, N) bool for text queries.

    Args:
      eval_set: gives the captions and the ids of the images.
      images_N: the images of the test.
      texts_M: a number for the wording of each caption of each of these images, in their order.
    """
    ids_N = np.asarray(eval_set.image_ids)[images_N] if eval_set.image_ids else images_N
    ids_M = np.repeat(ids_N, [len(eval_set.captions[image]) for image in images_N])
    positives_NxM = ids_N[:, None] == ids_M[None, :]
    positives_MxN = positives_NxM.T.copy()

    wordings, wording_M = np.unique(texts_M, return_inverse=True)
    for wording in np.flatnonzero(np.bincount(wording_M, minlength=len(wordings)) > 1):
        same = np.flatnonzero(wording_M == wording)
        positives_NxM[:, same] = positives_NxM[:, same].any(axis=1, keepdims=True)
    return positives_NxM, positives_MxN

"""Pairs of a picture and a text, dealt to calls of a method's `score`.

A pair is scored on the device where its picture is, and several texts stand beside each picture of
a call, so that a fusion encoder computes the picture's keys and values once for all of them. All
calls have one of few shapes, as each is compiled; the last one is padded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nas_jax.evals.encodings import Encodings
from nas_jax.typing import Array
from nas_jax.utils.logging import format_seconds

TEXTS_BESIDE = (1, 2, 16)
"""Texts beside each picture of a call: which one is used depends on how many the pictures have."""

AHEAD = 2  # calls that are started before the first of them is read


@dataclass(frozen=True)
class Call:
    """G pictures, by their row in their device's part of a batch, and C texts beside each."""

    image_G: np.ndarray
    pair_GxC: np.ndarray  # which pair each place is for; -1 for padding


def score_pairs(encodings: Encodings, images_U: np.ndarray, texts_U: np.ndarray) -> np.ndarray:
    """Scores (S, U) of pairs that are sorted by image, float32, in the order of `pair_scores`.

    All pictures and texts have been encoded, by this process.
    """
    scorer = encodings.scorer
    names = scorer.method.pair_scores
    out_SxU = np.zeros((len(names), len(images_U)), np.float32)
    progress = _PairsDone(encodings, len(images_U))

    def read(call: Call, found: dict[str, Array]) -> None:
        real_GxC = call.pair_GxC >= 0
        for row, name in enumerate(names):
            scores_GxC = np.asarray(found[name], np.float32)
            out_SxU[row, call.pair_GxC[real_GxC]] = scores_GxC[real_GxC]
        progress.add(int(np.count_nonzero(real_GxC)))

    for batch, calls in _batches(encodings, images_U):
        tokens_BxTxD = encodings.image_tokens(batch)
        waiting = []
        for call in calls:
            asked_GxC = np.where(call.pair_GxC < 0, call.pair_GxC.max(), call.pair_GxC)
            texts = encodings.text_tokens(texts_U[asked_GxC])
            image_G = scorer.by_rows(call.image_G)
            found = scorer.call(scorer.functions.score, tokens_BxTxD, image_G, *texts)
            waiting.append((call, found))
            if len(waiting) > AHEAD:
                read(*waiting.pop(0))
        for one in waiting:
            read(*one)
    scorer.pairs_matched += len(images_U)
    return out_SxU


def _batches(encodings: Encodings, images_U: np.ndarray) -> Iterator[tuple[int, list[Call]]]:
    """The calls for each batch of pictures, by its number; -1: the blank one."""
    if not len(images_U):
        return
    scorer = encodings.scorer
    pictures, counts = np.unique(images_U, return_counts=True)
    places = np.array([encodings.place(int(image)) for image in pictures])
    batch_U, row_U = (np.repeat(column, counts) for column in places.T)
    beside = texts_beside(counts)
    blocks = -(-counts // beside)  # of texts of each picture
    most = beside * max(int(blocks[places[:, 0] == batch].sum()) for batch in set(places[:, 0]))
    # A quarter of the rows a call where no batch of pictures has more.
    rows_a_call = scorer.match_rows // (1 if most > scorer.match_rows // 4 else 4)
    part = scorer.batch_size // scorer.shards
    limits = Limits(part, scorer.shards, beside, max(1, rows_a_call // beside // scorer.shards))
    for batch in np.unique(places[:, 0]):
        pairs_P = np.flatnonzero(batch_U == batch)
        rows_P = row_U[pairs_P]
        if batch == -1:  # every row is the blank picture, so any device may take its texts
            rows_P = np.arange(len(rows_P)) // beside % scorer.shards * part
        order = np.argsort(rows_P, kind="stable")
        yield int(batch), deal(pairs_P[order], rows_P[order], limits)


@dataclass(frozen=True)
class Limits:
    """What calls have room for."""

    part: int  # rows of a batch of pictures on each device
    shards: int  # devices with rows
    beside: int  # texts beside a picture; one with more takes several places
    a_device: int  # pictures of a call on each device


def deal(pairs_P: np.ndarray, rows_P: np.ndarray, limits: Limits) -> list[Call]:
    """Spreads pairs over calls; each stays on the device of its picture.

    Args:
      pairs_P: what `Call.pair_GxC` shall name.
      rows_P: row of each pair's picture in its batch, rising.
      limits: shape of a call.
    """
    part, shards, beside, a_device = limits.part, limits.shards, limits.beside, limits.a_device
    number_P = np.arange(len(rows_P)) - np.searchsorted(rows_P, rows_P)  # among its picture's
    begins_P = number_P % beside == 0
    block_P = np.cumsum(begins_P) - 1
    row_of_block = rows_P[begins_P]
    shard = row_of_block // part
    place = np.arange(len(row_of_block)) - np.searchsorted(shard, shard)  # in its device's queue
    calls = int(place.max()) // a_device + 1
    where = place // a_device, shard, place % a_device
    image = np.zeros((calls, shards, a_device), np.int32)
    image[where] = row_of_block % part
    pair = np.full((calls, shards, a_device, beside), -1, np.int64)
    pair[(*(index[block_P] for index in where), number_P % beside)] = pairs_P
    return [Call(image[call].ravel(), pair[call].reshape(-1, beside)) for call in range(calls)]


def texts_beside(counts: np.ndarray) -> int:
    """How many texts to put beside each picture, given how many each has: the least work, padding
    included.
    """
    # work for a picture in a call, in that of a pair; about T / L * 2 / 14 of a fusion layer
    keys_and_values = 0.5
    return min(
        TEXTS_BESIDE,
        key=lambda beside: float((-(-counts // beside)).sum() * (beside + keys_and_values)),
    )


class _PairsDone:
    """The line that says how far the matching is."""

    def __init__(self, encodings: Encodings, total: int):
        self._name, self._console = encodings.eval_set.name, encodings.scorer.console
        self._total, self._done, self._began = total, 0, time.monotonic()

    def add(self, pairs: int) -> None:
        self._done += pairs
        spent = max(time.monotonic() - self._began, 1e-9)
        left = format_seconds((self._total - self._done) * spent / max(self._done, 1))
        line = f"{self._name}: {self._done}/{self._total} pairs matched"
        speed = f"{self._done / spent:.0f} pairs/s"
        self._console.progress(f"{line}  {speed}  left {left}", due=self._done == self._total)

"""Retrieval from the scores of all pairs, whoever computed them: ranks, readings, recalls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nas_jax.evals.detail import direction_result
from nas_jax.evals.karpathy import Collection
from nas_jax.evals.metrics import DIRECTIONS, Ranks, best_ranks
from nas_jax.evals.places import right_places
from nas_jax.evals.rank_files import SHORT
from nas_jax.evals.readings import Task, right_answers
from nas_jax.evals.results import Result
from nas_jax.evals.retrieval import BLOCK
from nas_jax.evals.statistics import RESAMPLES
from nas_jax.utils.errors import DataError


def is_table(path: Path) -> bool:
    """Whether a .npy, or the first of a folder, has two axes. False where it is no such file."""
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    try:
        return bool(files) and np.load(files[0], mmap_mode="r", allow_pickle=False).ndim == 2
    except (OSError, ValueError, EOFError):
        return False


def table_results(
    path: Path, collection: Collection, scorer: str, resamples: int = RESAMPLES
) -> list[Result]:
    """Every reading of a retrieval set in both directions.

    Args:
      path: a .npy (pictures, texts) in the order of the list, with which both directions are
        ranked; or a folder with two, `*i2t*.npy` (pictures, texts) and `*t2i*.npy` (texts,
        pictures), as codes that rank the best candidates again make them.
      collection: the list.
      scorer: what the scores are called.
      resamples: of the bootstrap.

    Raises:
      DataError: tables of another shape, or with a score that is no finite number.
    """
    captions = collection.eval_set.captions
    shape = len(captions), sum(map(len, captions))
    to_text_NxM, to_image_MxN = _tables(path, shape)
    out = []
    for name, rule, first in collection.readings():
        columns_M = _columns(captions, first)
        task = _task(collection, name, rule, first)
        asking_Q, wanted_Q = (task.queries(direction) for direction in DIRECTIONS)
        blocks = (
            lambda rows, asking_Q=asking_Q, columns_M=columns_M: to_text_NxM[asking_Q[rows]][
                :, columns_M
            ],
            lambda rows, wanted_M=columns_M[wanted_Q]: to_image_MxN[wanted_M[rows]],
        )
        for direction, block in zip(DIRECTIONS, blocks, strict=True):
            ranks = _ranks(task, direction, block, scorer)
            out.append(direction_result(collection, task, [ranks], resamples))
    return out


def _tables(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(pictures, texts) to look for texts with, and (texts, pictures) to look for pictures with."""
    if not path.is_dir():
        table_NxM = _table(path, shape)
        return table_NxM, table_NxM.T
    found = {}
    for short, want in zip(SHORT, (shape, shape[::-1]), strict=True):
        files = [one for one in sorted(path.glob("*.npy")) if short in one.name]
        if len(files) != 1:
            expected = "one of i2t (pictures, texts) and one of t2i (texts, pictures)"
            got, remedy = f"{path}: {len(files)} files of {short}", "name one file with all scores"
            raise DataError(got, expected, remedy)
        found[short] = _table(files[0], want)
    return found["i2t"], found["t2i"]


def _table(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: {error}", "a .npy with scores", "check --scores") from error
    if table.shape != shape or table.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: {table.dtype} {table.shape}",
            f"{shape} scores: {min(shape)} pictures and {max(shape)} texts, in the list's order",
            "check that --data is the same list",
        )
    for start in range(0, len(table), BLOCK):
        if not np.isfinite(table[start : start + BLOCK]).all():
            got = f"{path}: a score that is not finite, in rows {start} to {start + BLOCK - 1}"
            raise DataError(got, "finite scores", "give left-out candidates a low one, like -100")
    return table


def _columns(captions: Sequence[Sequence[str]], first: int) -> np.ndarray:
    """Which texts take part where only the first so many of a picture do; 0: all."""
    places = np.concatenate([np.arange(len(texts)) for texts in captions])
    return np.flatnonzero(places < first) if first else np.arange(len(places))


def _task(collection: Collection, name: str, rule: str, first: int) -> Task:
    captions = [texts[: first or None] for texts in collection.eval_set.captions]
    wordings: dict[str, int] = {}
    texts_M = np.array(
        [wordings.setdefault(text, len(wordings)) for texts in captions for text in texts]
    )
    images_N = np.arange(len(captions))
    owner_M = np.repeat(images_N, [len(texts) for texts in captions])
    judgement = collection.judgement(rule)
    right = right_answers(collection.eval_set, images_N, texts_M, owner_M, rule, judgement)
    return Task(name, images_N, texts_M, *right, owner_M, judgement)


def _ranks(task: Task, direction: str, block: Callable, scorer: str) -> Ranks:
    """block: numbers of queries -> their scores (rows, C)."""
    right = task.right(direction)
    ranks, found = [], []
    for start in range(0, len(right), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(right)))
        scores_RxC = np.asarray(block(rows))
        positives_RxC = np.zeros(scores_RxC.shape, bool)
        for row, query in enumerate(rows):
            positives_RxC[row, right[query]] = True
        ranks.append(best_ranks(scores_RxC, positives_RxC))
        if task.judgement is not None:
            found += right_places(scores_RxC, positives_RxC)
    counts = np.array([len(one) for one in right])
    return Ranks(
        *(scorer, direction, np.concatenate(ranks), counts, task.candidates(direction)),
        task=task.name,
        at_r=task.at_r(direction, found),
    )

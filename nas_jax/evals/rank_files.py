"""Recall from ranks that exist already, as `evals/score.py` reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nas_jax.evals.benchmarks.reading import read_json
from nas_jax.evals.metrics import CUTS, DIRECTIONS, Metric, Ranks, recalls
from nas_jax.evals.statistics import RESAMPLES, bootstrap_interval
from nas_jax.utils.errors import DataError

SHORT = {"i2t": DIRECTIONS[0], "t2i": DIRECTIONS[1]}  # in the names of files
# COCO's test set has 25,010 captions; some count the first five of each picture, 25,000
CAPTIONS_OF_FIVE = 5


def retrieval_numbers(
    path: Path, data: Path | None = None, resamples: int = RESAMPLES
) -> list[Metric]:
    """Recall at 1, 5 and 10 from ranks.

    Args:
      path: a .npy whose name has i2t or t2i in it, or a folder with one or both.
      data: Karpathy's json, [{image, caption: [...]}, ...]; checks the counts, gives the chance of
        image_to_text, and adds text_to_image over the first five captions of each picture where
        some have more.
      resamples: of the bootstrap.
    """
    paths = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    captions_N = None if data is None else _caption_counts(data)
    out: list[Metric] = []
    for short, direction in SHORT.items():
        found = [one for one in paths if short in one.name]
        if len(found) > 1:
            raise DataError(f"{path}: {len(found)} files of {short}", "one", "name the file itself")
        if found:
            out += _direction(found[0], direction, captions_N, resamples)
    if not out:
        raise DataError(f"{path}: no ranks", "a .npy with i2t or t2i in its name", "check --scores")
    means = [one.value for one in out if one.quantity == "r_mean" and one.part in DIRECTIONS]
    if len(means) == len(DIRECTIONS):
        names, mean = ("retrieval", "both", "ranks", "r_mean"), float(np.mean(means))
        out.append(Metric(*names, value=mean, chance=math.nan, count=out[0].count))
    return out


def _direction(
    path: Path, direction: str, captions_N: np.ndarray | None, resamples: int
) -> list[Metric]:
    ranks_R, to_text = _read_ranks(path), direction == DIRECTIONS[0]
    own_R = np.arange(len(ranks_R))
    if captions_N is None:
        return _recalls(Ranks("ranks", direction, ranks_R, None, 0), own_R, resamples)
    images, texts = len(captions_N), int(captions_N.sum())
    if to_text:
        _check_ranks(path, ranks_R, images, texts)
        return _recalls(Ranks("ranks", direction, ranks_R, captions_N, texts), own_R, resamples)
    _check_ranks(path, ranks_R, texts, images)
    image_R, ones = np.repeat(np.arange(images), captions_N), np.ones(texts, np.int64)
    out = _recalls(Ranks("ranks", direction, ranks_R, ones, images), image_R, resamples)
    first = np.concatenate([np.arange(count) < CAPTIONS_OF_FIVE for count in captions_N])
    if not first.all():
        part = f"{direction}_first{CAPTIONS_OF_FIVE}"
        fewer = Ranks("ranks", part, ranks_R[first], ones[first], images)
        out += _recalls(fewer, image_R[first], resamples)
    return out


def _recalls(found: Ranks, unit_R: np.ndarray, resamples: int) -> list[Metric]:
    """Recalls and their mean. unit_R: what the bootstrap draws."""
    part = found.direction
    out = recalls(found, "retrieval", part, draws=(unit_R, resamples))
    mean_R = np.mean([found.ranks < k for k in CUTS], axis=0)
    low, high = bootstrap_interval(mean_R, unit_R, resamples)
    mean = Metric(
        "retrieval",
        part,
        found.scorer,
        "r_mean",
        value=float(np.mean([one.value for one in out])),
        low=low,
        high=high,
        chance=float(np.mean([one.chance for one in out])),
        count=len(mean_R),
    )
    return [*out, mean]


def _read_ranks(path: Path) -> np.ndarray:
    try:
        ranks_R = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: {error}", "a .npy with ranks", "check --scores") from error
    if (
        ranks_R.ndim != 1
        or not len(ranks_R)
        or ranks_R.dtype.kind not in "iuf"
        or not (ranks_R >= 0).all()
    ):
        raise DataError(
            f"{path}: {ranks_R.dtype} {ranks_R.shape}", "one rank from 0 a query", "check --scores"
        )
    return ranks_R


def _caption_counts(path: Path) -> np.ndarray:
    entries = read_json(path, list)
    lists = [entry.get("caption") if isinstance(entry, Mapping) else None for entry in entries]
    counts = [len(captions) for captions in lists if isinstance(captions, list) and captions]
    if not counts or len(counts) < len(lists):
        raise DataError(
            f"{path}: an entry without captions", "[{image, caption: [...]}, ...]", "check --data"
        )
    return np.array(counts)


def _check_ranks(path: Path, ranks_R: np.ndarray, queries: int, candidates: int) -> None:
    if len(ranks_R) != queries or ranks_R.max() >= candidates:
        got = f"{path}: {len(ranks_R)} ranks up to {ranks_R.max():g}"
        raise DataError(
            got, f"{queries} ranks below {candidates}", "check that --data is the same test set"
        )

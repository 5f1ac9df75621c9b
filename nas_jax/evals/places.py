"""Where all right candidates of a query stand in its ranking, and what follows from it: mAP@R and
R-Precision (Musgrave et al. 2020, "A Metric Learning Reality Check"; Chun et al. 2022, "ECCV
Caption").

R is the number of right answers of a query, which need not all be among its candidates.

    R-Precision = right ones among the first R / R
    mAP@R       = sum over k <= R of (k-th is right) * (right ones among the first k) / k, by R

Ties are misses, as everywhere here: what ties with a right candidate stands before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Places = Sequence[np.ndarray]
"""For each query the places (0 = first) of its right candidates, rising."""

AT_R = ("map@r", "r_precision")


def right_places(scores_RxC: np.ndarray, positives_RxC: np.ndarray) -> list[np.ndarray]:
    """The places of all right candidates of each row.

    Args:
      scores_RxC: one row a query, one column a candidate.
      positives_RxC: True where the candidate is right.
    """
    rows = zip(scores_RxC, positives_RxC, strict=True)
    return [_places(scores_C[right_C], scores_C[~right_C]) for scores_C, right_C in rows]


def reranked_places(
    first: Places, right_Rxk: np.ndarray, reranked_Rxk: np.ndarray
) -> list[np.ndarray]:
    """`right_places` of a two-stage ranking: the shortlist by its second score, then all others by
    their first.

    Args:
      first: the places under the first score, whose first k the shortlist is.
      right_Rxk, reranked_Rxk: as `metrics.reranked_ranks`.
    """
    out = []
    for before_P, right_k, again_k in zip(first, right_Rxk, reranked_Rxk, strict=True):
        inside = np.count_nonzero(right_k)  # the others keep their place
        again_P = _places(again_k[right_k], again_k[~right_k])
        out.append(np.concatenate([again_P, before_P[inside:]]))
    return out


def _places(right_P: np.ndarray, wrong_W: np.ndarray) -> np.ndarray:
    best_first_P = -np.sort(-right_P)  # NaN comes last
    not_beaten_P = (~(wrong_W[None] < best_first_P[:, None])).sum(axis=1)
    return np.arange(len(right_P)) + not_beaten_P


@dataclass(frozen=True)
class AtR:
    """mAP@R and R-Precision of each query of one direction; shares, not percent."""

    values: Mapping[str, np.ndarray]  # name of AT_R -> (Q,)
    chance: Mapping[str, float]  # expected mean under a random order
    blind: Mapping[str, np.ndarray] | None = None  # `values` without pictures


def at_r(places: Places, r_Q: np.ndarray, candidates: int, blind: Places | None = None) -> AtR:
    """Both quantities.

    Args:
      places: of the right candidates of each query.
      r_Q: number of right answers of each query, R.
      candidates: number of all candidates.
      blind: the places without pictures.
    """
    right_Q = [len(one) for one in places]
    chance_Qx2 = [_chance(r, right, candidates) for r, right in zip(r_Q, right_Q, strict=True)]
    chance = np.mean(chance_Qx2, axis=0).tolist()
    without = None if blind is None else _values(blind, r_Q)
    return AtR(_values(places, r_Q), dict(zip(AT_R, chance, strict=True)), without)


def _values(places: Places, r_Q: np.ndarray) -> dict[str, np.ndarray]:
    average, precision = [], []
    for places_P, r in zip(places, r_Q, strict=True):
        found = places_P[places_P < r]
        average.append((np.arange(1, len(found) + 1) / (found + 1)).sum() / r)
        precision.append(len(found) / r)
    return dict(zip(AT_R, (np.array(average), np.array(precision)), strict=True))


def _chance(r: int, right: int, candidates: int) -> tuple[float, float]:
    """Expected values of one query: the k-th is right with probability right / candidates, and then
    each of the k - 1 before it with (right - 1) / (candidates - 1).
    """
    k = np.arange(1, min(r, candidates) + 1)
    others = (right - 1) / max(candidates - 1, 1)
    share = right / candidates
    return share * ((1 + (k - 1) * others) / k).sum() / r, share * len(k) / r

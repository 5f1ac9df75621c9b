"""Metrics as pure numpy functions of scores. All values are percentages.

Every comparison is strict: a wrong candidate that ties with the right one counts as ranked before
it, so a model that gives all candidates the same score gets 0, not the luck of a sort. A NaN score
never wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from nas_jax.evals.places import AtR
from nas_jax.evals.statistics import bootstrap_interval
from nas_jax.utils.errors import DataError

QUAD_CHANCE = {"text": 100 / 4, "image": 100 / 4, "group": 100 / 6}
"""Chance of random scores on a quad. The four scores have 24 orders: the group score needs both
right pairs above both wrong ones, which 2! * 2! = 4 of them are (Thrush et al. 2022, "Winoground",
section 4)."""

PAIR_CHANCE = 50.0
CUTS = (1, 5, 10)  # recall is at these
DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation, with what is needed to judge it.

    All in percent but `count` and `ties`.
    """

    benchmark: str  # or evaluation set
    part: str  # "all", "macro", a group or a category; of a run's own set: foils, quads, retrieval
    scorer: str
    quantity: str
    _: KW_ONLY
    value: float
    low: float = math.nan  # 95 % bootstrap interval over pictures; NaN: none
    high: float = math.nan
    chance: float  # the expected value under random scores
    # the value when the model sees a blank picture: what it knows from the text alone
    blind: float | None = None
    count: int  # answers that the value is a mean over
    ties: int = 0  # answers that were wrong by a tie alone

    @property
    def key(self) -> str:
        """benchmark/part/scorer/quantity, like "valse/existence/itm/accuracy"."""
        return "/".join((self.benchmark, self.part, self.scorer, self.quantity))


def percent(hits: np.ndarray) -> float:
    """Share of True in an array, in percent. Raises DataError on an empty array."""
    if np.size(hits) == 0:
        remedy = "check the evaluation set and eval.max_*"
        raise DataError("a metric over 0 examples", "at least one example", remedy)
    return float(100.0 * np.count_nonzero(hits) / np.size(hits))  # in this order 14 % is 14.0


def best_ranks(scores_RxC: np.ndarray, positives_RxC: np.ndarray) -> np.ndarray:
    """Rank (0 = first) of each row's best positive: the number of wrong candidates that score as
    high or higher.

    Args:
      scores_RxC: one row a query, one column a candidate.
      positives_RxC: True where the candidate is right; every row needs one.
    """
    _check_positives(positives_RxC)
    best_Rx1 = np.where(positives_RxC, scores_RxC, -np.inf).max(axis=1, keepdims=True)
    not_beaten_RxC = ~(scores_RxC < best_Rx1)  # not ">=", so that NaN counts against
    return (not_beaten_RxC & ~positives_RxC).sum(axis=1)


def shortlist(scores_RxC: np.ndarray, positives_RxC: np.ndarray, k: int) -> np.ndarray:
    """The k best candidates of each row, best first; k is clamped to C.

    At a tie the wrong candidates go first.
    """
    k = min(k, scores_RxC.shape[1])
    # Only what is not below the k-th best is sorted. Not ">=", so that NaN stays a candidate: it
    # sorts last.
    kth_R = np.partition(-scores_RxC, k - 1, axis=1)[:, k - 1]
    out_Rxk = np.empty((len(scores_RxC), k), np.int32)
    for row, (scores_C, positives_C) in enumerate(zip(scores_RxC, positives_RxC, strict=True)):
        columns = np.flatnonzero(~(-scores_C > kth_R[row]))
        out_Rxk[row] = columns[np.lexsort((positives_C[columns], -scores_C[columns]))[:k]]
    return out_Rxk


def reranked_ranks(
    first_R: np.ndarray, right_Rxk: np.ndarray, reranked_Rxk: np.ndarray
) -> np.ndarray:
    """`best_ranks` of a two-stage ranking: the shortlist by its second score, then all others by
    their first.

    Args:
      first_R: `best_ranks` of the first score, that chose the shortlist (ITC). It holds where no
        right candidate is in the shortlist: all of the shortlist then stands before the best of
        them.
      right_Rxk: True where the candidate in the shortlist is right, see `shortlist`.
      reranked_Rxk: second scores of the shortlist (ITM).
    """
    best_Rx1 = np.where(right_Rxk, reranked_Rxk, -np.inf).max(axis=1, keepdims=True)
    ranks_R = (~(reranked_Rxk < best_Rx1) & ~right_Rxk).sum(axis=1)
    return np.where(right_Rxk.any(axis=1), ranks_R, first_R)


def recall_at_k(ranks_R: np.ndarray, k: int) -> float:
    """Percent of queries whose best right candidate is among the first k."""
    return percent(np.asarray(ranks_R) < k)


def recall_chance(positives_R: np.ndarray, candidates: int, k: int) -> float:
    """Expected `recall_at_k` of a random order, exactly: mean over rows of 1 - C(wrong, k) /
    C(candidates, k).

    Args:
      positives_R: number of right candidates of each query.
      candidates: number of all candidates.
      k: the cut.
    """
    counts, rows = np.unique(np.asarray(positives_R), return_counts=True)
    chances = []
    drawn = np.arange(min(k, candidates))
    for count in counts:
        wrong = np.maximum(candidates - count - drawn, 0)
        chances.append(1.0 - np.prod(wrong / (candidates - drawn)))
    return float(100.0 * np.average(chances, weights=rows))


@dataclass(frozen=True)
class Ranks:
    """Ranks (0 = first) of the best right candidate of each query of one direction, under one
    scorer.
    """

    scorer: str
    direction: str  # one of DIRECTIONS
    ranks: np.ndarray
    right: np.ndarray | None  # number of right candidates of each query; None: not known
    candidates: int
    blind: np.ndarray | None = None  # the same ranks without pictures
    task: str = "retrieval"
    at_r: AtR | None = None  # of queries with judged answers


def recalls(
    found: Ranks,
    benchmark: str,
    part: str,
    before: str = "",
    draws: tuple[np.ndarray, int] | None = None,
) -> list[Metric]:
    """Recall at each of `CUTS`; where there are, also mAP@R and R-Precision.

    Args:
      found: the ranks.
      benchmark, part: of the metrics.
      before: what their quantity has before "r@k".
      draws: units of the queries, and resamples of the bootstrap; None: no interval.
    """
    out = []
    for k in CUTS:
        low, high = bootstrap_interval(found.ranks < k, *draws) if draws else (math.nan, math.nan)
        chance = math.nan
        if found.right is not None:
            chance = recall_chance(found.right, found.candidates, k)
        metric = Metric(
            benchmark,
            part,
            found.scorer,
            f"{before}r@{k}",
            value=recall_at_k(found.ranks, k),
            low=low,
            high=high,
            chance=chance,
            blind=None if found.blind is None else recall_at_k(found.blind, k),
            count=len(found.ranks),
        )
        out.append(metric)
    if found.at_r is None:
        return out
    for name, value_Q in found.at_r.values.items():
        low, high = bootstrap_interval(value_Q, *draws) if draws else (math.nan, math.nan)
        metric = Metric(
            benchmark,
            part,
            found.scorer,
            f"{before}{name}",
            value=float(100 * value_Q.mean()),
            low=low,
            high=high,
            chance=100 * found.at_r.chance[name],
            blind=float(100 * found.at_r.blind[name].mean()) if found.at_r.blind else None,
            count=len(value_Q),
        )
        out.append(metric)
    return out


def format_table(metrics: Sequence[Metric], markdown: bool = False) -> str:
    """Metrics as lines of aligned text, or as a Markdown table. Percentages have one decimal."""
    header = ("metric", "value", "chance", "text-only", "n")
    rows = []
    for m in metrics:
        blind = "-" if m.blind is None else f"{m.blind:.1f}"
        rows.append((m.key, f"{m.value:.1f}", f"{m.chance:.1f}", blind, str(m.count)))
    first, *widths = (max(map(len, column)) for column in zip(header, *rows, strict=True))

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(first), *map(str.rjust, row[1:], widths)]
        return "| " + " | ".join(cells) + " |" if markdown else "  ".join(cells)

    end = ":" if markdown else "-"
    bars = ["-" * first, *("-" * (width - 1) + end for width in widths)]
    return "\n".join([line(header), line(bars), *map(line, rows)])


def _check_positives(positives_RxC: np.ndarray) -> None:
    without = np.flatnonzero(~positives_RxC.any(axis=1))
    if without.size:
        raise DataError(
            f"query {without[0]} without a right candidate", "one or more", "leave such queries out"
        )

"""Metrics: strictness, chance levels, two-stage ranking."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nas_jax.evals import metrics
from nas_jax.evals.metrics import Metric
from nas_jax.evals.outcomes import hits
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

RNG = np.random.default_rng(0)


def random_positives(rows: int, columns: int) -> np.ndarray:
    """One to three right candidates a row."""
    positives = np.zeros((rows, columns), bool)
    for row in range(rows):
        positives[row, RNG.choice(columns, RNG.integers(1, 4), replace=False)] = True
    return positives


def made_up(form: str) -> Benchmark:
    """A benchmark of that form; what is asked does not matter here."""
    return Benchmark("made up", form, (), (), {})


def brute_force_ranks(order_keys, positives_RxC):
    """Sorts each row's candidates by (key descending, wrong first); the place of the first right
    one.
    """
    out = []
    for row, positives_C in enumerate(positives_RxC):
        keys = [order_keys(row, column) for column in range(len(positives_C))]
        order = sorted(
            (tuple(-x for x in key), right) for key, right in zip(keys, positives_C, strict=True)
        )
        out.append(next(place for place, (_, right) in enumerate(order) if right))
    return np.array(out)


@pytest.mark.parametrize("k", [1, 4, 20, 99])
def test_rerank_equals_brute_force_with_ties(k):
    # few values: many ties, also at the shortlist's edge
    first = RNG.integers(0, 12, (60, 20)).astype(np.float32)
    second = RNG.integers(0, 4, (60, 20)).astype(np.float32)
    positives = random_positives(60, 20)
    short = metrics.shortlist(first, positives, k)
    assert short.shape == (60, min(k, 20))
    got = metrics.reranked_ranks(
        metrics.best_ranks(first, positives),
        np.take_along_axis(positives, short, 1),
        np.take_along_axis(second, short, 1),
    )

    listed = [set(row) for row in short]
    want = brute_force_ranks(
        lambda r, c: (1, second[r, c]) if c in listed[r] else (0, first[r, c]),
        positives,
    )
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
        metrics.best_ranks(first, positives),
        brute_force_ranks(lambda r, c: (first[r, c],), positives),
    )
    if k >= 20:
        np.testing.assert_array_equal(got, metrics.best_ranks(second, positives))


def test_shortlist_holds_the_best_and_gives_ties_at_its_edge_to_the_wrong():
    scores = np.array([[5.0, 1.0, 1.0, 1.0, 0.0]])
    positives = np.array([[False, True, False, False, False]])
    assert list(metrics.shortlist(scores, positives, 3)[0]) == [0, 2, 3]


def test_random_scores_meet_the_computed_chance():
    rows, columns = 20_000, 12
    positives = random_positives(rows, columns)
    ranks = metrics.best_ranks(RNG.random((rows, columns)), positives)
    for k in (1, 5, 10, 12):
        assert metrics.recall_at_k(ranks, k) == pytest.approx(
            metrics.recall_chance(positives.sum(1), columns, k), abs=1.2
        )
    wins = hits(made_up("quad"), RNG.random((rows, 2, 2)))
    for name, chance in metrics.QUAD_CHANCE.items():
        assert metrics.percent(wins[name]) == pytest.approx(chance, abs=1.2)
    wins = hits(made_up("choice"), RNG.random((rows, 1, 2)))["accuracy"]
    assert metrics.percent(wins) == pytest.approx(metrics.PAIR_CHANCE, abs=1.2)


def test_recall_chance_is_the_hypergeometric_by_enumeration():
    for count, k in ((1, 1), (2, 3), (4, 2), (5, 5)):
        draws = list(itertools.combinations(range(6), k))
        exact = np.mean([min(draw) < count for draw in draws])  # the first `count` of 6 are right
        assert metrics.recall_chance(np.array([count]), 6, k) == pytest.approx(100 * exact)


def test_quad_chance_is_exact_over_all_orders():
    orders = np.array(list(itertools.permutations(range(4)))).reshape(-1, 2, 2)
    for name, wins in hits(made_up("quad"), orders).items():
        assert metrics.percent(wins) == pytest.approx(metrics.QUAD_CHANCE[name])


@pytest.mark.parametrize("constant", [0.0, np.nan])
def test_ties_and_nan_never_win(constant):
    positives = random_positives(30, 15)
    scores = np.full((30, 15), constant)
    assert metrics.recall_at_k(metrics.best_ranks(scores, positives), 10) == 0
    short = metrics.shortlist(scores, positives, 5)
    first, right = metrics.best_ranks(scores, positives), np.take_along_axis(positives, short, 1)
    ranks = metrics.reranked_ranks(first, right, np.take_along_axis(scores, short, 1))
    assert metrics.recall_at_k(ranks, 10) == 0
    for form, shape in (("choice", (3, 1, 2)), ("quad", (3, 2, 2))):
        found = hits(made_up(form), np.full(shape, constant))
        assert found and not any(wins.any() for wins in found.values())


def test_empty_and_unanswerable_are_refused():
    with pytest.raises(DataError, match="0 examples"):
        metrics.percent(np.zeros(0))
    with pytest.raises(DataError, match="query 1 without"):
        metrics.best_ranks(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_table():
    numbers = {"value": 71.26, "chance": 50.0, "blind": 48.0, "count": 1234}
    rows = [
        Metric("val", "foils", "itm", "colour", **numbers),
        Metric("val", "foils", "itm", "x", value=5.0, chance=1.0, count=3),
    ]
    plain = metrics.format_table(rows).splitlines()
    assert plain[0].split() == ["metric", "value", "chance", "text-only", "n"]
    assert plain[2].split() == ["val/foils/itm/colour", "71.3", "50.0", "48.0", "1234"]
    assert plain[3].split() == ["val/foils/itm/x", "5.0", "1.0", "-", "3"]
    assert len({len(line) for line in plain}) == 1
    marked = metrics.format_table(rows, markdown=True).splitlines()
    assert all(line.count("|") == 6 for line in marked) and set(marked[1]) <= set("|-: ")

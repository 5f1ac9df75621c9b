"""The keys of the numbers that an evaluation will give, without a model.

The functions that make the numbers are called with scores that are all zero, so that the keys here
are theirs. Only what ranks whole retrieval sets is given a single query instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from nas_jax.evals import karpathy, zero_shot
from nas_jax.evals.config import EvalConfig, check_scorers
from nas_jax.evals.metrics import DIRECTIONS, Metric, Ranks, recalls
from nas_jax.evals.numbers import numbers
from nas_jax.evals.outcomes import cells_of
from nas_jax.evals.pairs import foil_metrics, quad_metrics
from nas_jax.evals.places import at_r
from nas_jax.evals.questions import Scored, with_corrected
from nas_jax.evals.run import Loaded
from nas_jax.methods.method import Method
from nas_jax.utils.errors import ConfigError

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet


def metric_keys(
    config: EvalConfig,
    method: Method | type[Method],
    eval_sets: Sequence[EvalSet],
    benchmarks: Sequence[Loaded] = (),
) -> list[str]:
    """The keys that `suite.make_evaluator` gives metrics for, in no order.

    Args:
      config: which numbers, with which scores of the method.
      method: whose scores, or its class.
      eval_sets: the run's own sets.
      benchmarks: what `run.load_all` gives.

    Raises:
      ConfigError: a scorer that the method does not give.
    """
    scorers = check_scorers(config.scorers, method)
    found = [one for eval_set in eval_sets for one in _own(config, scorers, eval_set)]
    found += [one for loaded in benchmarks for one in _public(config, loaded, scorers, method)]
    return list(dict.fromkeys(metric.key for metric in found))


def check_key(key: str, keys: Sequence[str], field: str = "train.best_metric") -> None:
    """Raises ConfigError, with the closest known one, unless `key` is one of an evaluation's.

    keys: all that it gives. field: where the user wrote the key.
    """
    if key in keys:
        return
    if not keys:
        expected = "an evaluation, of which the run has none"
        raise ConfigError(f"{field}={key!r}", expected, "set data.holdout, data.val, or no metric")
    close = difflib.get_close_matches(key, keys, 1, 0.0)
    raise ConfigError(
        f"{field}={key!r}",
        f"one of the {len(keys)} metrics of the evaluation",
        f"did you mean {close[0]!r}",
    )


@dataclass(frozen=True)
class _Zeros:
    """Scores of an evaluation set, all zero; as `PairScores`."""

    eval_set: EvalSet

    def text_indices(self, texts: Sequence[str]) -> np.ndarray:
        return np.zeros(len(texts), np.int64)

    def scores(
        self, name: str, image_indices_P: np.ndarray, text_indices_P: np.ndarray
    ) -> np.ndarray:
        return np.zeros(len(image_indices_P), np.float32)


def _own(config: EvalConfig, scorers: Sequence[str], eval_set: EvalSet) -> Iterator[Metric]:
    """As `suite`, of one of the run's own sets."""
    for name in scorers:
        if config.retrieval and any(eval_set.captions):
            for direction in DIRECTIONS:
                ranks = _one_query(name, direction)
                yield from recalls(ranks, eval_set.name, ranks.task, f"{direction}_")
        if config.foils:
            yield from foil_metrics(_Zeros(eval_set), name, config.max_pairs)
        if config.quads:
            yield from quad_metrics(_Zeros(eval_set), name, config.max_pairs)


def _public(
    config: EvalConfig, loaded: Loaded, scorers: Sequence[str], method: Method | type[Method]
) -> Iterator[Metric]:
    """As `run.score`, of a benchmark."""
    if isinstance(loaded, karpathy.Collection):
        given = (*method.feature_scores, *method.pair_scores, *method.summed_scores)
        published = [name for name in karpathy.SCORERS if name in given]
        readings = loaded.readings()
        for reading, direction, scorer in product(readings, DIRECTIONS, [*published, *scorers]):
            judged = loaded.judgement(reading[1]) is not None
            ranks = _one_query(scorer, direction, judged)
            yield from recalls(ranks, loaded.name, f"{reading[0]}/{direction}")
        return
    benchmark = loaded.benchmark if isinstance(loaded, zero_shot.Classes) else loaded
    if benchmark.form == "texts":
        scorers = method.feature_scores[:1]
    zeros = [
        np.zeros(cells_of(benchmark.form, question), np.float32) for question in benchmark.questions
    ]
    blind = zeros if benchmark.form != "texts" and benchmark is loaded else None
    found = [Scored(name, zeros, blind) for name in scorers]
    for one in with_corrected(found) if config.subtract_blind else found:
        yield from numbers(benchmark, one, resamples=1)


def _one_query(scorer: str, direction: str, judged: bool = False) -> Ranks:
    one, zero = np.ones(1, int), np.zeros(1, int)
    found = at_r([zero], one, 1) if judged else None
    return Ranks(scorer, direction, zero, one, 1, zero, at_r=found)

"""All evaluations of all sets as one function, which the training loop calls."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from nas_jax.evals import run
from nas_jax.evals.config import EvalConfig, with_scorers
from nas_jax.evals.detail import own_results
from nas_jax.evals.functions import ScoredModel, ScoringFunctions, TextEncoding
from nas_jax.evals.metrics import Metric
from nas_jax.evals.pairs import (
    check_answers_differ,
    foil_benchmark,
    foil_metrics,
    quad_benchmark,
    quad_metrics,
)
from nas_jax.evals.results import Result
from nas_jax.evals.retrieval import retrieval_metrics
from nas_jax.evals.scorers import Scorer, SetScores
from nas_jax.methods.method import Method
from nas_jax.storage.files import make_folder, write_whole
from nas_jax.storage.paths import as_path
from nas_jax.typing import Params, PyTree
from nas_jax.utils.errors import DataError
from nas_jax.utils.logging import Console

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet

_LOG = logging.getLogger(__name__)

Evaluator = Callable[[Params, PyTree, int], list[Metric]]


@dataclass(frozen=True)
class Measured:
    """What is measured: the run's own sets and benchmarks, all with pictures of one size."""

    eval_sets: Sequence[EvalSet]  # their names differ
    tokenizer: TextEncoding
    text_length: int  # tokens of a text of the evaluation sets
    image_size: int  # height and width of all pictures, pixels
    benchmarks: Sequence[run.Loaded] = ()  # what `run.load_all` gives; at `config.text_length`
    # from this step on, foils and quads of the evaluation sets give `Result`s too; None: never
    detailed_from: int | None = None

    def check(self) -> None:
        """Raises DataError on two sets of one name, ConfigError on a `text_length` that cuts off
        the words in which a caption and its foil differ.
        """
        names = [eval_set.name for eval_set in self.eval_sets]
        if len(set(names)) < len(names):
            got = f"evaluation sets named {names}"
            raise DataError(got, "different names", "rename one of the sets")
        for eval_set in self.eval_sets:
            for benchmark in (foil_benchmark(eval_set), quad_benchmark(eval_set)):
                check_answers_differ(benchmark, self.tokenizer, self.text_length)


def make_evaluator(
    config: EvalConfig,
    method: Method,
    measured: Measured,
    mesh: Mesh | None = None,
    keep: Callable[[int, list[Result], EvalConfig], None] | None = None,
    console: Console | None = None,
) -> Evaluator:
    """Returns `evaluate(params, method_state, step) -> metrics`; its first call compiles.

    Args:
      config: which numbers, with which scores of the method.
      method: whose scores.
      measured: on what.
      mesh: see `Scorer`.
      keep: gets the step, the results with every score if there are any, and the config with the
        scorers by name; called on every process.
      console: shows progress.

    Raises:
      ConfigError: a bad config, a scorer that the method does not give.
      DataError, ConfigError: see `Measured.check`.
    """
    config.validate()
    config = with_scorers(config, method)
    measured.check()
    functions = ScoringFunctions.of(method, config.image_tokens)

    def evaluate(params: Params, method_state: PyTree, step: int) -> list[Metric]:
        start = time.perf_counter()
        reading = measured.tokenizer, measured.image_size
        model = ScoredModel(functions, params, method_state, *reading)
        scorer = Scorer(model, config, mesh, console)
        out: list[Metric] = []
        results: list[Result] = []
        detailed = measured.detailed_from is not None and step >= measured.detailed_from
        for eval_set in measured.eval_sets:
            scores = scorer.on(eval_set, text_length=measured.text_length)
            out += _own_metrics(scores, config)
            results += own_results(scores, config) if detailed else []
        for benchmark in measured.benchmarks:
            found = run.score(scorer, benchmark, config)
            out += [row for result in found for row in result.rows]
            results += found
        if keep is not None and results:
            keep(step, results, config)
        _LOG.info("step %d: %d metrics in %.1f s", step, len(out), time.perf_counter() - start)
        return out

    return evaluate


def _own_metrics(scores: SetScores[EvalSet], config: EvalConfig) -> list[Metric]:
    """Retrieval, foils and quads of one of the run's own sets."""
    out = retrieval_metrics(scores, config) if config.retrieval else []
    for name in config.scorers:
        out += foil_metrics(scores, name, config.max_pairs) if config.foils else []
        out += quad_metrics(scores, name, config.max_pairs) if config.quads else []
    return out


def write_results(
    path: str | os.PathLike[str], metrics: Sequence[Metric], info: Mapping[str, Any]
) -> None:
    """Writes `{"info": ..., "metrics": [{key, value, chance, blind, count}, ...]}` as JSON, whole
    or not at all.
    """
    target = as_path(path)
    make_folder(target.parent)
    numbers = ("key", "value", "chance", "blind", "count")
    listed = [{name: getattr(metric, name) for name in numbers} for metric in metrics]
    text = json.dumps({"info": dict(info), "metrics": listed}, indent=1, allow_nan=False)
    write_whole(target, text + "\n")

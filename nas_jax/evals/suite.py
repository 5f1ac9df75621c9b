"""All evaluations of all sets as one function, which the training loop calls."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from nas_jax.evals import run
from nas_jax.evals.config import EvalConfig
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
from nas_jax.evals.scorers import Scorer, ScoringFunctions, TextEncoding
from nas_jax.storage.files import make_folder, write_whole
from nas_jax.storage.paths import as_path
from nas_jax.typing import Params, PyTree
from nas_jax.utils.errors import DataError
from nas_jax.utils.logging import Console

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet

_LOG = logging.getLogger(__name__)

Evaluator = Callable[[Params, PyTree, int], list[Metric]]


def make_evaluator(
    config: EvalConfig,
    eval_sets: Sequence[EvalSet],
    tokenizer: TextEncoding,
    method: Any,
    text_length: int,
    image_size: int,
    mesh: Mesh | None = None,
    benchmarks: Sequence[run.Loaded] = (),
    keep: Callable[[int, list[Result]], None] | None = None,
    detailed: bool = False,
    console: Console | None = None,
) -> Evaluator:
    """Returns `evaluate(params, method_state, step) -> metrics`. The model functions compile at its
    first call only.

    Args:
      config: what to measure.
      eval_sets: on what; their names must differ.
      tokenizer: see `TextEncoding`.
      method: a `nas_jax.methods.Method`.
      text_length: tokens of a text of the evaluation sets.
      image_size: height and width of all pictures, pixels.
      mesh: see `Scorer`.
      benchmarks: what `run.load_all` gives; measured too, at `config.text_length`.
      keep: gets the step and the results with every score, if there are any; called on every
      process.
      detailed: the foils and quads of the evaluation sets give such results too.
      console: shows progress.

    Raises:
      ConfigError: a bad config, or a `text_length` that cuts off the words in which a caption and
      its foil differ.
      DataError: two sets of one name.
    """
    config.validate()
    names = [eval_set.name for eval_set in eval_sets]
    if len(set(names)) < len(names):
        raise DataError(
            f"evaluation sets named {names}", "different names", "rename one of the sets"
        )
    for eval_set in eval_sets:
        for benchmark in (foil_benchmark(eval_set), quad_benchmark(eval_set)):
            check_answers_differ(benchmark, tokenizer, text_length)
    functions = ScoringFunctions.of(method, config.image_tokens)

    def evaluate(params: Params, method_state: PyTree, step: int) -> list[Metric]:
        start = time.perf_counter()
        sizes = (text_length, config.batch_size, image_size)
        scorer = Scorer(
            functions,
            params,
            method_state,
            tokenizer,
            *sizes,
            match_rows=config.match_rows,
            mesh=mesh,
            store=config.store,
            device_gib=config.device_gib,
            console=console,
        )
        out: list[Metric] = []
        results: list[Result] = []
        for eval_set in eval_sets:
            scores = scorer.on(eval_set)
            if config.retrieval:
                out += retrieval_metrics(scores, config.scorers, config.rerank_k, config.max_images)
            for name in config.scorers:
                out += foil_metrics(scores, name, config.max_pairs) if config.foils else []
                out += quad_metrics(scores, name, config.max_pairs) if config.quads else []
            results += run.own_results(scores, config) if detailed else []
        for benchmark in benchmarks:
            found = run.score(scorer, benchmark, config)
            out += run.as_metrics(found)
            results += found
        if keep is not None and results:
            keep(step, results)
        _LOG.info("step %d: %d metrics in %.1f s", step, len(out), time.perf_counter() - start)
        return out

    return evaluate


def write_results(
    path: str | os.PathLike[str], metrics: Sequence[Metric], info: Mapping[str, Any]
) -> None:
    """Writes `{"info": ..., "metrics": [{key, value, chance, blind, count}, ...]}` as JSON, whole
    or not at all.
    """
    target = as_path(path)
    make_folder(target.parent)
    text = json.dumps(
        {"info": dict(info), "metrics": [asdict(m) for m in metrics]}, indent=1, allow_nan=False
    )
    write_whole(target, text + "\n")

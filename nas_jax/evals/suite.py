"""All evaluations of all sets as one function, which the training loop calls."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas_jax.evals.config import EvalConfig
from nas_jax.evals.metrics import Metric
from nas_jax.evals.pairs import foil_metrics, quad_metrics
from nas_jax.evals.retrieval import retrieval_metrics
from nas_jax.evals.scorers import Scorer, ScoringFunctions, TextEncoding
from nas_jax.typing import Params, PyTree
from nas_jax.utils.errors import ConfigError, DataError

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
) -> Evaluator:
    """Returns `evaluate(params, method_state, step) -> metrics`. The model functions compile at its first call only.

    Args:
      config: what to measure.
      eval_sets: on what; their names must differ.
      tokenizer: see `TextEncoding`.
      method: a `nas_jax.methods.Method`.
      text_length: tokens of a text.
      image_size: height and width of the sets' images, pixels.

    Raises:
      ConfigError: a bad config, or a `text_length` that cuts off the words in which a caption and its foil differ.
      DataError: two sets of one name.
    """
    config.validate()
    names = [eval_set.name for eval_set in eval_sets]
    if len(set(names)) < len(names):
        raise DataError(f"evaluation sets named {names}", "different names", "rename one of the sets")
    for eval_set in eval_sets:
        check_pairs_differ(eval_set, tokenizer, text_length)
    functions = ScoringFunctions.of(method)

    def evaluate(params: Params, method_state: PyTree, step: int) -> list[Metric]:
        start = time.perf_counter()
        scorer = Scorer(functions, params, method_state, tokenizer, text_length, config.batch_size, image_size)
        out: list[Metric] = []
        for eval_set in eval_sets:
            scores = scorer.on(eval_set)
            if config.retrieval:
                out += retrieval_metrics(scores, config.scorers, config.rerank_k, config.max_images)
            for name in config.scorers:
                out += foil_metrics(scores, name, config.max_pairs) if config.foils else []
                out += quad_metrics(scores, name, config.max_pairs) if config.quads else []
        _LOG.info("step %d: %d metrics in %.1f s", step, len(out), time.perf_counter() - start)
        return out

    return evaluate


def check_pairs_differ(eval_set: EvalSet, tokenizer: TextEncoding, text_length: int) -> None:
    """Fails where cutting to `text_length` tokens makes a caption and its foil the same, and warns of other such pairs.

    The word that decides is often the last one (VALSE's coreference), so a length that is enough for training can
    silently make pairs unsolvable.
    """
    pairs = [(foil.caption, foil.foil) for foil in eval_set.foils]
    pairs += [(quad.caption_0, quad.caption_1) for quad in eval_set.quads]
    if not pairs:
        return
    collapsed = [pair for pair, same in zip(pairs, _same_tokens(pairs, tokenizer, text_length), strict=True) if same]
    if not collapsed:
        return
    # Pairs that differ at four times the length were cut; the others differ in case or spaces or unknown characters.
    for (first, _), same in zip(collapsed, _same_tokens(collapsed, tokenizer, 4 * text_length), strict=True):
        if not same:
            got = f"text_length={text_length} cuts {first!r} and its foil in {eval_set.name!r} to the same tokens"
            raise ConfigError(got, "pairs that differ", "raise the text length of the evaluation (VALSE fits in 64)")
    _LOG.warning(
        "%s: %d of %d pairs have the same tokens on both sides and count as wrong, e.g. %r and %r",
        *(eval_set.name, len(collapsed), len(pairs), *collapsed[0]),
    )


def _same_tokens(pairs: list[tuple[str, str]], tokenizer: TextEncoding, length: int) -> np.ndarray:
    first_ids, first_mask = tokenizer.encode([first for first, _ in pairs], length)
    second_ids, second_mask = tokenizer.encode([second for _, second in pairs], length)
    return ((np.asarray(first_ids) == second_ids) & (np.asarray(first_mask) == second_mask)).all(axis=1)


def write_results(path: str | os.PathLike[str], metrics: Sequence[Metric], info: Mapping[str, Any]) -> None:
    """Writes `{"info": ..., "metrics": [{key, value, chance, blind, count}, ...]}` as JSON, whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"info": dict(info), "metrics": [asdict(m) for m in metrics]}, indent=1, allow_nan=False)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(target)

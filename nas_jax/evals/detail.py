"""The `Result` of a benchmark: every question's scores, and the numbers that follow from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nas_jax.evals import karpathy
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.metrics import CUTS, DIRECTIONS, Ranks, recalls
from nas_jax.evals.numbers import numbers, units
from nas_jax.evals.outcomes import outcomes
from nas_jax.evals.pairs import foil_benchmark, longer_than, quad_benchmark, scored
from nas_jax.evals.questions import Benchmark, Cells, Scored, with_corrected
from nas_jax.evals.readings import Task, make_task
from nas_jax.evals.results import Result, plain
from nas_jax.evals.retrieval import rank
from nas_jax.evals.scorers import Scorer, SetScores

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet


_LOG = logging.getLogger(__name__)


def score_questions(scores: SetScores, benchmark: Benchmark, config: EvalConfig) -> Result:
    """Questions under all scorers; of form texts, under the method's first feature score."""
    names = config.scorers
    if benchmark.form == "texts":
        names = scores.method.feature_scores[:1]
    found = [scored(scores, benchmark.form, benchmark.questions, name) for name in names]
    found = with_corrected(found) if config.subtract_blind else found
    return question_result(benchmark, found, config.bootstrap)


def own_results(scores: SetScores[EvalSet], config: EvalConfig) -> list[Result]:
    """The foils and quads of one of the run's own evaluation sets, in full detail."""
    eval_set = scores.eval_set
    out = []
    for wanted, name, make in (
        (config.foils, "foils", foil_benchmark),
        (config.quads, "quads", quad_benchmark),
    ):
        benchmark = make(eval_set, config.max_pairs)
        if not wanted or not benchmark.questions:
            continue
        questions = tuple(
            replace(one, category=one.category.replace("/", "-")) for one in benchmark.questions
        )
        protocol = {"pictures": "held out from the run's training data"}
        named = replace(
            benchmark, name=f"{eval_set.name}:{name}", questions=questions, protocol=protocol
        )
        out.append(score_questions(scores, named, config))
    return out


def question_result(
    benchmark: Benchmark, found: Sequence[Scored], resamples: int, ranks_only: bool = False
) -> Result:
    """What the scores of a benchmark give.

    Args:
      benchmark: the questions.
      found: their scores under each scorer.
      resamples: of the bootstrap.
      ranks_only: keep the rank of the right answer instead of all scores.
    """
    questions, keep = benchmark.questions, _ranks if ranks_only else _plain
    return Result(
        name=benchmark.name,
        form=benchmark.form,
        protocol=dict(benchmark.protocol),
        dropped=dict(benchmark.dropped),
        counts={
            "questions": len(questions),
            "images": len({image for question in questions for image in question.images}),
            "texts": len({text for question in questions for text in question.texts}),
        },
        rows=tuple(row for one in found for row in numbers(benchmark, one, resamples)),
        keys=tuple(question.key for question in questions),
        categories=tuple(question.category for question in questions),
        units=tuple(units(benchmark).tolist()),
        averages=_averages(benchmark),
        hits={one.scorer: _hits(benchmark, one) for one in found},
        scores={one.scorer: keep(one.seen) for one in found},
        blind={one.scorer: keep(one.blind) for one in found if one.blind is not None},
        headline=benchmark.headline,
    )


def _averages(benchmark: Benchmark) -> dict[str, tuple[str, ...]]:
    """Average -> the categories it is a mean of."""
    present = sorted({question.category for question in benchmark.questions})
    if len(present) == 1:
        return {}
    macro = tuple(present) if benchmark.macro is None else benchmark.macro
    groups = {"macro": macro, **benchmark.groups}
    members = {
        group: tuple(name for name in names if name in present) for group, names in groups.items()
    }
    return {group: names for group, names in members.items() if names}


def _hits(benchmark: Benchmark, one: Scored) -> dict[str, list[bool | None]]:
    """Quantity -> whether each question is right; None: not counted."""
    return {
        quantity: [
            bool(hit) if counted else None
            for hit, counted in zip(found.hits, found.counted, strict=True)
        ]
        for quantity, found in outcomes(benchmark, one.seen, one.scorer).items()
    }


def _plain(cells: Cells) -> list:
    return [plain(cell) for cell in cells]


def _ranks(cells: Cells) -> list[int]:
    """Ranks of the right answers, which stand first."""
    return [int((~(cell[0, 1:] < cell[0, 0])).sum()) for cell in cells]


# ---------------------------------------------------------------------------------------- retrieval


def score_retrieval(
    scorer: Scorer, collection: karpathy.Collection, config: EvalConfig, rerank_k: int = 0
) -> list[Result]:
    """Every reading of a retrieval set in both directions, under the published scorers, as far as
    the method has them, and those of the config.

    rerank_k: candidates a query that are ranked again; 0: the published number.
    """
    texts = [text for captions in collection.eval_set.captions for text in captions]
    length = min(collection.text_length or config.text_length, config.text_length)
    scores = scorer.on(collection.eval_set, texts, length)
    long = longer_than(length, texts, scorer.model.tokenizer)
    tasks = [
        make_task(scores, name, rule, max_captions=first, judgement=collection.judgement(rule))
        for name, rule, first in collection.readings()
    ]
    published = [name for name in karpathy.SCORERS if name in scorer.method.scores]
    scorers = tuple(dict.fromkeys([*published, *config.scorers]))
    k = rerank_k or collection.rerank_k
    found = rank(scores, tasks, scorers, k)
    out = []
    for task in tasks:
        for direction in DIRECTIONS:
            ranks = [one for one in found if (one.task, one.direction) == (task.name, direction)]
            result = direction_result(collection, task, ranks, config.bootstrap)
            rules = {"ranked again": f"the first {k} of ITC", "tokens": f"at most {length}"}
            if long:
                rules["tokens"] += f"; {long} of {len(texts)} captions have more and were cut"
            out.append(replace(result, protocol={**result.protocol, **rules}))
    if long > karpathy.CUT_SHARE * len(texts):
        _LOG.warning(
            "%s: %d of %d captions have more than %d tokens, and the rest was cut off. Remedy: a "
            "larger --text-length (eval.text_length), as far as the model has positions.",
            *(collection.name, long, len(texts), length),
        )
    return out


def direction_result(
    collection: karpathy.Collection, task: Task, found: Sequence[Ranks], resamples: int
) -> Result:
    """The `Result` of one direction of one reading. A unit is an image with its captions."""
    first = found[0]
    asked_Q, part = task.queries(first.direction), f"{task.name}/{first.direction}"
    if first.direction == DIRECTIONS[0]:
        owner_Q, keys = asked_Q, [collection.names[image] for image in asked_Q]
    else:
        owner_Q = task.owner_M[asked_Q]
        numbers_Q = asked_Q - np.searchsorted(task.owner_M, owner_Q)
        keys = [
            f"{collection.names[image]}#{number}"
            for image, number in zip(owner_Q, numbers_Q, strict=True)
        ]
    _, units_Q = np.unique(owner_Q, return_inverse=True)
    draws = units_Q, resamples
    return Result(
        name=f"{collection.name}/{part}",
        form="retrieval",
        protocol=_rules(collection.protocol, task.name.split("-")[-1]),
        dropped=dict(collection.dropped),
        counts={"queries": len(keys), "candidates": first.candidates},
        rows=tuple(
            row for one in found for row in recalls(one, collection.name, part, draws=draws)
        ),
        keys=tuple(keys),
        categories=("none",) * len(keys),
        units=tuple(units_Q.tolist()),
        hits={one.scorer: _found(one) for one in found},
        scores={one.scorer: one.ranks.tolist() for one in found},
        blind={one.scorer: one.blind.tolist() for one in found if one.blind is not None},
    )


def _found(ranks: Ranks) -> dict[str, list[bool] | list[float]]:
    """Quantity -> what each query adds to its mean."""
    at_r = {} if ranks.at_r is None else ranks.at_r.values
    recall = {f"r@{k}": (ranks.ranks < k).tolist() for k in CUTS}
    return recall | {name: value_Q.tolist() for name, value_Q in at_r.items()}


def _rules(protocol: Mapping[str, str], rule: str) -> dict[str, str]:
    """The protocol of a reading: of the rules, its own."""
    return {name: value for name, value in protocol.items() if name not in karpathy.RULES - {rule}}

"""Benchmarks by name, under a scorer: loaded, checked, scored, and turned into `Result`s and
`Metric`s.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import nas_jax
from nas_jax.evals import karpathy, metrics, zero_shot
from nas_jax.evals.benchmarks import BENCHMARKS, Options, load_benchmark
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.metrics import Metric
from nas_jax.evals.outcomes import Row, outcomes, rows, units
from nas_jax.evals.pairs import Cells, cells, check_answers_differ, foil_benchmark, quad_benchmark
from nas_jax.evals.questions import Benchmark
from nas_jax.evals.results import Result, plain
from nas_jax.evals.retrieval import CUTS, DIRECTIONS, Ranks, make_task, rank
from nas_jax.evals.scorers import Scorer, SetScores, TextEncoding
from nas_jax.evals.statistics import bootstrap_interval
from nas_jax.utils.errors import ConfigError

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet

CLASSES = "classes"
OWN_SETS = "val"
TABLE = {name: entry.about for name, entry in BENCHMARKS.items()} | {
    "coco": "COCO retrieval, Karpathy's test split, with 25,010 and 25,000 texts",
    "flickr30k": "Flickr30k retrieval, Karpathy's test split",
    CLASSES: "zero-shot classification: a folder of pictures a class, or labels.jsonl",
}
"""Name of a benchmark -> what it is, for --help."""

Loaded = Benchmark | karpathy.Collection | zero_shot.Classes


@dataclass(frozen=True)
class Texts:
    """How a model reads texts."""

    tokenizer: TextEncoding
    clean: bool  # lower case, without punctuation, as in its training
    positions: int  # rows of its position table: no text may have more tokens


def check_names(names: Sequence[str]) -> None:
    """Raises ConfigError on a name that is no benchmark."""
    for name in names:
        if name not in TABLE:
            raise ConfigError(
                f"benchmark {name!r}", f"one of {', '.join(TABLE)}", "check the spelling"
            )


def check_length(length: int, texts: Texts, field: str) -> None:
    """Raises ConfigError where texts may have more tokens than the model has positions."""
    if length > texts.positions:
        raise ConfigError(
            f"{field}={length} for a model with {texts.positions} text positions",
            f"at most {texts.positions}",
            f"set {field} to {texts.positions}; it is checked that no pair is cut to the same "
            "tokens",
        )


def load(
    name: str,
    folder: Path,
    image_size: int,
    config: EvalConfig,
    texts: Texts,
    prompts: str = "photo@1",
) -> list[Loaded]:
    """The benchmarks of a name, with pictures; no answer is cut off.

    Raises ConfigError: a name or text length that does not fit. DataError: those of the loaders.
    """
    check_names([name])
    options = Options(image_size, config.max_dropped, texts.clean)
    if name in karpathy.FILES:
        return [karpathy.load(name, folder, options)]
    if name == CLASSES:
        return [zero_shot.load(folder, options, prompts)]
    found = load_benchmark(name, folder, image_size, config.max_dropped, texts.clean)
    for benchmark in found:
        check_answers_differ(benchmark, texts.tokenizer, config.text_length)
    return list(found)


def load_all(config: EvalConfig, image_size: int, texts: Texts) -> list[Loaded]:
    """All of `config.benchmarks`, each from the folder of its name in `config.data`.

    Errors: as `load`.
    """
    if not config.benchmarks:
        return []
    check_names(config.benchmarks)
    check_length(config.text_length, texts, "eval.text_length")
    root = Path(config.data)
    return [
        one
        for name in config.benchmarks
        for one in load(name, root / name, image_size, config, texts)
    ]


def score(scorer: Scorer, loaded: Loaded, config: EvalConfig, rerank_k: int = 0) -> list[Result]:
    """All numbers of a benchmark under `config.scorers`.

    rerank_k: of retrieval; 0: the published one.
    """
    if isinstance(loaded, karpathy.Collection):
        return score_retrieval(scorer, loaded, config, rerank_k)
    if isinstance(loaded, zero_shot.Classes):
        sentences = [text for texts in loaded.sentences for text in texts]
        scores = scorer.on(loaded.benchmark, sentences, config.text_length)
        found = {name: zero_shot.class_cells(scores, loaded, name) for name in config.scorers}
        return [_result(loaded.benchmark, found, config, ranks_only=True)]
    texts = [text for question in loaded.questions for text in question.texts]
    scores = scorer.on(loaded, texts, config.text_length)
    return [score_questions(scores, loaded, config)]


def score_questions(scores: SetScores, benchmark: Benchmark, config: EvalConfig) -> Result:
    """Questions under all scorers; of form texts, under the one there is for them."""
    names = ("itc",) if benchmark.form == "texts" else config.scorers
    found = {name: cells(scores, benchmark.form, benchmark.questions, name) for name in names}
    return _result(benchmark, found, config)


def own_results(scores: SetScores, config: EvalConfig) -> list[Result]:
    """The foils and quads of one of the run's own evaluation sets, in full detail."""
    eval_set: EvalSet = scores.eval_set
    out = []
    for wanted, name, make in (
        (config.foils, "foils", foil_benchmark),
        (config.quads, "quads", quad_benchmark),
    ):
        benchmark = make(eval_set, config.max_pairs)
        if wanted and benchmark.questions:
            questions = (
                replace(one, category=one.category.replace("/", "-")) for one in benchmark.questions
            )
            named = Benchmark(
                f"{eval_set.name}:{name}", benchmark.form, tuple(questions), benchmark.images,
                {"pictures": "held out from the run's training data"},
            )  # fmt: skip
            out.append(score_questions(scores, named, config))
    return out


def _result(
    benchmark: Benchmark,
    found: Mapping[str, tuple[Cells, Cells | None]],
    config: EvalConfig,
    ranks_only: bool = False,
) -> Result:
    questions = benchmark.questions
    categories = tuple(question.category for question in questions)
    present = sorted(set(categories))
    macro = (
        present
        if benchmark.macro is None
        else [name for name in benchmark.macro if name in present]
    )
    averages = {"macro": tuple(macro)} | {
        group: tuple(name for name in names if name in present)
        for group, names in benchmark.groups.items()
    }

    def stored(all_cells: Cells) -> list:
        if ranks_only:  # of the right one, which stands first
            return [int((~(cell[0, 1:] < cell[0, 0])).sum()) for cell in all_cells]
        return [plain(cell) for cell in all_cells]

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
        rows=tuple(
            row
            for scorer, (seen, blind) in found.items()
            for row in rows(benchmark, seen, scorer, blind, config.bootstrap)
        ),
        keys=tuple(question.key for question in questions),
        categories=categories,
        units=tuple(units(benchmark).tolist()),
        averages={
            name: members for name, members in averages.items() if members and len(present) > 1
        },
        hits={
            scorer: {
                quantity: [
                    bool(hit) if counted else None
                    for hit, counted in zip(one.hits, one.counted, strict=True)
                ]
                for quantity, one in outcomes(benchmark, seen, scorer).items()
            }
            for scorer, (seen, _) in found.items()
        },
        scores={scorer: stored(seen) for scorer, (seen, _) in found.items()},
        blind={scorer: stored(blind) for scorer, (_, blind) in found.items() if blind is not None},
    )


# ---------------------------------------------------------------------------------------- retrieval


def score_retrieval(
    scorer: Scorer, collection: karpathy.Collection, config: EvalConfig, rerank_k: int = 0
) -> list[Result]:
    """Every reading of a retrieval set in both directions, under the published scorers and those of
    the config.
    """
    captions = collection.eval_set.captions
    scores = scorer.on(
        collection.eval_set,
        [text for texts in captions for text in texts],
        min(karpathy.TEXT_LENGTH, config.text_length),
    )
    tasks = [
        make_task(scores, name, rule, max_captions=first)
        for name, rule, first in collection.readings()
    ]
    scorers = (
        *karpathy.SCORERS,
        *(name for name in config.scorers if name not in karpathy.SCORERS),
    )
    k = rerank_k or collection.rerank_k
    found = rank(scores, tasks, scorers, k)
    out = []
    for task in tasks:
        for direction in DIRECTIONS:
            ranks = {
                one.scorer: one
                for one in found
                if (one.task, one.direction) == (task.name, direction)
            }
            out.append(_direction(collection, task.name, direction, ranks, task.owner_M, k, config))
    return out


def _direction(
    collection: karpathy.Collection,
    task: str,
    direction: str,
    ranks: Mapping[str, Ranks],
    owner_M: np.ndarray,
    k: int,
    config: EvalConfig,
) -> Result:
    """One direction of one reading. A unit is an image with its captions."""
    to_text = direction == DIRECTIONS[0]
    queries = len(next(iter(ranks.values())).ranks)
    units_Q = np.arange(queries) if to_text else owner_M
    keys = [collection.names[unit] for unit in units_Q]
    if not to_text:
        first = np.searchsorted(owner_M, owner_M)
        keys = [
            f"{key}#{number}" for key, number in zip(keys, np.arange(queries) - first, strict=True)
        ]
    made = []
    for scorer, one in ranks.items():
        for cut in CUTS:
            low, high = bootstrap_interval(one.ranks < cut, units_Q, config.bootstrap)
            chance = metrics.recall_chance(one.right, one.candidates, cut)
            values = (
                metrics.recall_at_k(one.ranks, cut),
                low,
                high,
                chance,
                metrics.recall_at_k(one.blind, cut),
            )
            part = f"{task}/{direction}"
            made.append(
                Row(collection.name, part, scorer, f"r@{cut}", *values, count=queries, ties=0)
            )
    rule = task.split("-")[-1]
    protocol = {
        name: value
        for name, value in collection.protocol.items()
        if name not in ("own", "wording") or name == rule
    }
    return Result(
        name=f"{collection.name}/{task}/{direction}",
        form="retrieval",
        protocol=protocol | {"ranked again": f"the first {k} of ITC"},
        dropped=dict(collection.dropped),
        counts={"queries": queries, "candidates": next(iter(ranks.values())).candidates},
        rows=tuple(made),
        keys=tuple(keys),
        categories=("none",) * queries,
        units=tuple(units_Q.tolist()),
        hits={
            name: {f"r@{cut}": (one.ranks < cut).tolist() for cut in CUTS}
            for name, one in ranks.items()
        },
        scores={name: one.ranks.tolist() for name, one in ranks.items()},
        blind={name: one.blind.tolist() for name, one in ranks.items()},
    )


# ------------------------------------------------------------------------------------------- output


def as_metrics(results: Sequence[Result]) -> Iterator[Metric]:
    """The rows of results as the training loop takes them."""
    for result in results:
        for row in result.rows:
            yield Metric(row.key, row.value, row.chance, row.blind, row.count)


def protocol(
    config: EvalConfig, texts: Texts, image_size: int, checkpoint: Mapping[str, Any]
) -> dict[str, Any]:
    """How numbers were made, for results.json. checkpoint: what is known of the weights."""
    return {
        "checkpoint": dict(checkpoint),
        "scorers": list(config.scorers),
        "image_size": image_size,
        "image_tokens": config.image_tokens,
        "stored_as": config.store,
        "text_length": config.text_length,
        "text": "cleaned as ALBEF does" if texts.clean else "as written",
        "bootstrap": {"resamples": config.bootstrap, "seed": 0, "level": 95},
        "largest_share_dropped": config.max_dropped,
        "devices": f"{jax.device_count()} {jax.devices()[0].platform}",
        "versions": {
            "nas_jax": nas_jax.__version__,
            "jax": jax.__version__,
            "numpy": version("numpy"),
            "python": platform.python_version(),
        },
    }

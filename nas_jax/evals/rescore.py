"""Numbers of a benchmark from scores that exist already, whoever computed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks import BENCHMARKS, load_benchmark, valse
from nas_jax.evals.benchmarks.pictures import NoPictures
from nas_jax.evals.metrics import Metric
from nas_jax.evals.numbers import numbers
from nas_jax.evals.questions import Benchmark, Cells, Question
from nas_jax.evals.rank_files import retrieval_numbers
from nas_jax.evals.score_files import Given, read_scores
from nas_jax.evals.statistics import RESAMPLES
from nas_jax.utils.errors import ConfigError, DataError


def score(
    name: str,
    path: Path,
    data: Path | None = None,
    scorer: str | None = None,
    resamples: int = RESAMPLES,
) -> list[Metric]:
    """All numbers of a benchmark from a file of scores.

    Args:
      name: a benchmark of `BENCHMARKS`, or "retrieval".
      path: the file, or of retrieval a folder with two.
      data: the annotations; needed except for the published forms of VALSE and Winoground and for
      ranks.
      scorer: what the scores are; None: "probability" of the published forms, as named in a
      results.json, else "score".
      resamples: of the bootstrap.

    Raises:
      ConfigError: an unknown benchmark, or no `data` where it is needed.
      DataError: a malformed file, or items that are not those of the annotations.
    """
    if name == "retrieval":
        return retrieval_numbers(path, data, resamples)
    if name not in BENCHMARKS:
        expected = f"one of {', '.join((*BENCHMARKS, 'retrieval'))}"
        raise ConfigError(f"benchmark {name!r}", expected, "check the spelling")
    if not path.exists():
        raise DataError(f"no file {str(path)!r}", "a file of scores", "check --scores")
    loaded = load_benchmark(name, data) if data is not None else ()
    out: list[Metric] = []
    for benchmark in loaded or (None,):
        for given in read_scores(path, benchmark.name if benchmark else name):
            scored = given.scored
            if benchmark:
                scored = replace(scored, seen=_in_order(given, benchmark, data, path))
            scored = replace(scored, scorer=scorer or scored.scorer)
            out += numbers(benchmark or _alone(name, given), scored, resamples)
    return out


def _alone(name: str, given: Given) -> Benchmark:
    """The benchmark that a published score file implies."""
    if given.kind != name:
        got = f"scores of {name} of kind {given.kind}, without --data"
        raise ConfigError(got, "the annotation files", "pass --data DIR")
    if name == "winoground":
        quads = tuple(
            Question(key, "none", (2 * i, 2 * i + 1), ("", "")) for i, key in enumerate(given.keys)
        )
        pictures = NoPictures(2 * len(quads))
        return Benchmark(name, "quad", quads, pictures, {}, headline="all/group")
    # One picture each, as the file does not say which examples share one.
    questions = tuple(
        Question(f"{piece}/{number}", piece, (index,), ("", ""))
        for index, (piece, number) in enumerate(given.keys)
    )
    pictures = NoPictures(len(questions))
    return Benchmark(name, "choice", questions, pictures, {}, groups=valse.GROUPS, absolute=True)


def _in_order(given: Given, benchmark: Benchmark, data: Path, path: Path) -> Cells:
    """The scores in the order of the questions.

    Raises DataError where the items are not the same.
    """
    keys: Sequence[Any] = given.keys
    if given.kind == "valse" and benchmark.name == "valse":
        published = valse.published_keys(data)
        unknown = [key for key in keys if key not in published]
        if unknown:
            piece, number = unknown[0]
            got = f"{path}: item {number} of {piece}"
            raise DataError(got, "an example of that piece", "check both files")
        keys = [published[key] for key in keys]
    elif given.kind not in ("cells", benchmark.name):
        got = f"{path}: scores of {given.kind}"
        raise DataError(got, f"scores of {benchmark.name}", "name the right benchmark")
    found = dict(zip(keys, given.scored.seen, strict=True))
    wanted = {question.key for question in benchmark.questions}
    if found.keys() != wanted:
        missing, extra = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
        without = f"{len(missing)} items of {benchmark.name} without scores"
        got = f"{path}: {without}, {len(extra)} scores of other items"
        example = (missing + extra)[0]
        expected = "scores of exactly its items"
        raise DataError(f"{got}, like {example!r}", expected, "check both files")
    return [found[question.key] for question in benchmark.questions]

"""Which items the scores of a file are of: joined with the questions on their keys."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from nas_jax.evals.benchmarks import valse
from nas_jax.evals.outcomes import cells_of
from nas_jax.evals.questions import Benchmark, Cells, Question, Scored
from nas_jax.evals.score_files import Given
from nas_jax.utils.errors import DataError

_LOG = logging.getLogger(__name__)
_SHOWN = 5  # keys in a message

Joined = list[tuple[Benchmark, list[Scored]]]
"""Benchmarks, each with its scores in the order of its questions."""


def join(
    given: Sequence[Given], loaded: Sequence[Benchmark], data: Path, path: Path, share: float
) -> Joined:
    """The scores of each benchmark that has some.

    Args:
      given: what the file has.
      loaded: the benchmarks of the annotations.
      data: where the annotations are.
      path: the file, for messages.
      share: of the items of a benchmark that may be without scores; they are left out.

    Raises:
      DataError: scores of other items, too few items, scores of another shape, scores that several
      benchmarks could mean.
    """
    found: dict[str, tuple[Benchmark, list[Scored]]] = {}
    for one in given:
        one = _with_our_keys(one, loaded, data, path)
        meant = _meant(one, loaded, path)
        _check_others(one, meant, path)
        for benchmark in meant:
            reduced, scored = _fitted(one, benchmark, path, share)
            if benchmark.name not in found:
                _warn_of_missing(reduced, benchmark, path)
            known, already = found.setdefault(benchmark.name, (reduced, []))
            if len(known.questions) != len(reduced.questions):
                got = f"{path}: scorers with scores of other items of {benchmark.name}"
                raise DataError(got, "the same items", "put each scorer into a file of its own")
            already.append(scored)
    if not found:
        names = ", ".join(benchmark.name for benchmark in loaded)
        there = ", ".join(dict.fromkeys(one.benchmark for one in given)) or "nothing"
        raise DataError(
            f"{path} has scores of {there}, without {names}",
            "scores of that benchmark",
            "check which run it is of",
        )
    for benchmark in loaded:
        if benchmark.name not in found:
            _LOG.warning("%s: no scores of %s", path, benchmark.name)
    return list(found.values())


def _with_our_keys(one: Given, loaded: Sequence[Benchmark], data: Path, path: Path) -> Given:
    """The scores under the loader's keys, where a published form has others."""
    names = {benchmark.name.partition("_")[0] for benchmark in loaded}
    if one.kind != "cells" and one.kind not in names:
        got = f"{path}: scores of {one.kind}"
        raise DataError(got, f"scores of {loaded[0].name}", "name the right benchmark")
    if one.kind != "valse":
        return one
    published = valse.published_keys(data)
    unknown = [key for key in one.keys if key not in published]
    if unknown:
        piece, number = unknown[0]
        got = f"{path}: item {number} of {piece}"
        raise DataError(got, "an example of that piece", "check both files")
    return replace(one, keys=tuple(published[key] for key in one.keys))


def _meant(one: Given, loaded: Sequence[Benchmark], path: Path) -> list[Benchmark]:
    """The benchmarks that scores are of. Several may share no key."""
    if one.benchmark:
        named = [benchmark for benchmark in loaded if benchmark.name == one.benchmark]
        if not named and one.kind == "cells" and one.scored.scorer == "score":
            got, names = f"{path}: benchmark {one.benchmark!r}", ", ".join(b.name for b in loaded)
            raise DataError(got, f"one of {names}", "check the benchmark, --data and --only")
        return named
    fitting = [benchmark for benchmark in loaded if _may_be(one, benchmark)]
    exact = [b for b in fitting if {q.key for q in b.questions} == set(one.keys)]
    fitting = exact or fitting
    for first, second in combinations(fitting, 2):
        if {q.key for q in first.questions} & {q.key for q in second.questions}:
            raise DataError(
                f"{path}: its keys are those of {first.name} and of {second.name}",
                "scores that say which",
                f"copy the field benchmark of the questions into each line, or pass --only "
                f"{first.name}",
            )
    # Where nothing fits, the first says why.
    return fitting or [max(loaded, key=lambda b: len({q.key for q in b.questions} & set(one.keys)))]


def _may_be(one: Given, benchmark: Benchmark) -> bool:
    """Whether some keys are of the benchmark, and all their scores have its shapes and labels."""
    questions = {question.key: question for question in benchmark.questions}
    rows = [index for index, key in enumerate(one.keys) if key in questions]
    if one.kind == "vsr" and any(
        questions[one.keys[row]].true != one.facts[row][0] for row in rows
    ):
        return False
    pairs = [(one.scored.seen[row], questions[one.keys[row]]) for row in rows]
    return bool(pairs) and all(
        _shaped(cell, cells_of(benchmark.form, question)) is not None for cell, question in pairs
    )


def _shaped(cell: np.ndarray, shape: tuple[int, int]) -> np.ndarray | None:
    """(pictures, texts); a single list is taken where there is one picture or one text."""
    if cell.shape == shape:
        return cell
    if cell.ndim == 1 and 1 in shape and cell.size == math.prod(shape):
        return cell.reshape(shape)
    return None


def _check_others(one: Given, meant: Sequence[Benchmark], path: Path) -> None:
    """Raises DataError where keys are of none of the benchmarks."""
    if not meant:
        return
    wanted = {question.key for benchmark in meant for question in benchmark.questions}
    extra = [key for key in one.keys if key not in wanted]
    if extra:
        missing = [key for key in wanted if key not in set(one.keys)]
        raise _differ(path, meant[0].name, sorted(missing), extra)


def _differ(path: Path, name: str, missing: list[str], extra: list[str]) -> DataError:
    def some(keys: list[str]) -> str:
        more = ", ..." if len(keys) > _SHOWN else ""
        return f" ({', '.join(map(repr, keys[:_SHOWN]))}{more})" if keys else ""

    got = f"{path}: {len(missing)} items of {name} without scores{some(missing)}, "
    got += f"{len(extra)} scores of other items{some(extra)}"
    remedy = "score these items too, or raise --max-dropped"
    if extra:
        remedy = "check that --data is what was scored; else remove the lines of other items"
    return DataError(got, "scores of exactly its items", remedy)


def _fitted(one: Given, benchmark: Benchmark, path: Path, share: float) -> tuple[Benchmark, Scored]:
    """The questions that have scores, and the scores in their order."""
    row = {key: index for index, key in enumerate(one.keys)}
    questions = tuple(question for question in benchmark.questions if question.key in row)
    missing = [question.key for question in benchmark.questions if question.key not in row]
    total = len(benchmark.questions)
    if not questions or len(missing) > max(share * total, one.dropped):
        raise _differ(path, benchmark.name, missing, [])
    if one.kind == "vsr":
        _check_labels(one, questions, benchmark.name, path)
    seen = _ordered(one.scored.seen, row, questions, benchmark.form, path)
    blind = one.scored.blind
    if blind is not None:
        blind = _ordered(blind, row, questions, benchmark.form, path)
    scored = replace(one.scored, seen=seen, blind=blind)
    if not missing:
        return benchmark, scored
    dropped = {**benchmark.dropped, "no score": len(missing)}
    return replace(benchmark, questions=questions, dropped=dropped), scored


def _warn_of_missing(reduced: Benchmark, benchmark: Benchmark, path: Path) -> None:
    known = {question.key for question in reduced.questions}
    missing = [question.key for question in benchmark.questions if question.key not in known]
    if missing:
        _LOG.warning(
            "%s: %d of %d items of %s have no score and are left out, like %r",
            *(path, len(missing), len(benchmark.questions), benchmark.name, missing[0]),
        )


def _check_labels(one: Given, questions: Sequence[Question], name: str, path: Path) -> None:
    truth = dict(zip(one.keys, one.facts, strict=True))
    for question in questions:
        if truth[question.key][0] != question.true:
            got = f"{path}: label {int(truth[question.key][0])} of item {question.key}"
            expected = f"{int(question.true)}, as {name} has it"
            raise DataError(got, expected, "check which split was scored")


def _ordered(
    cells: Cells, row: dict[str, int], questions: Sequence[Question], form: str, path: Path
) -> list[np.ndarray]:
    out = []
    for question in questions:
        cell, want = cells[row[question.key]], cells_of(form, question)
        shaped = _shaped(cell, want)
        if shaped is None:
            got = f"{path}: scores of shape {cell.shape} for {question.key!r}"
            expected = f"{want}, {want[0]} lists of {want[1]}: one a picture, with one score a text"
            raise DataError(got, expected, "check the order of pictures and texts")
        out.append(shaped)
    return out

"""Numbers of a benchmark from scores that exist already, whoever computed them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks import BENCHMARKS, LoadOptions, load_with
from nas_jax.evals.export import read_protocol
from nas_jax.evals.metrics import Metric
from nas_jax.evals.numbers import numbers
from nas_jax.evals.outcomes import THRESHOLDS
from nas_jax.evals.questions import Benchmark, with_corrected
from nas_jax.evals.rank_files import retrieval_numbers
from nas_jax.evals.score_files import Given, read_scores
from nas_jax.evals.score_joins import Joined, join
from nas_jax.evals.score_published import alone
from nas_jax.evals.statistics import RESAMPLES
from nas_jax.utils.errors import ConfigError, DataError

SCORERS = ("score", *THRESHOLDS, "itc", "itm_logit", "itm+itc", "late", "late_image", "late_text")
"""What scores of a file may be said to be."""


def score(
    name: str,
    path: Path,
    data: Path | None = None,
    scorer: str | None = None,
    resamples: int = RESAMPLES,
    **options: Any,
) -> list[Metric]:
    """All numbers of a benchmark from a file of scores.

    Args:
      name: a benchmark of `BENCHMARKS`, or "retrieval".
      path: the file, or of retrieval a folder with two.
      data: the annotations; needed except for the published forms and for ranks.
      scorer: see `joined`.
      resamples: of the bootstrap.
      options: of `joined`.

    Raises:
      ConfigError: an unknown benchmark or scorer, or no `data` where it is needed.
      DataError: a malformed file, or items that are not those of the annotations.
    """
    if name == "retrieval":
        return retrieval_numbers(path, data, resamples)
    return [
        row
        for benchmark, found in joined(name, path, data, scorer, **options)
        for one in found
        for row in numbers(benchmark, one, resamples)
    ]


def joined(
    name: str,
    path: Path,
    data: Path | None = None,
    scorer: str | None = None,
    only: str = "",
    max_dropped: float = 0.01,
    subtract_blind: bool = False,
    questions: Path | None = None,
) -> Joined:
    """The benchmarks that a file has scores of, with the scores in the order of their questions.

    Args:
      name, path, data: as in `score`.
      scorer: what the scores are; None: "probability" of the published forms, "score" of other
        lines. Of a results.json with several, the one that is taken; None: all.
      only: of a loader that gives several benchmarks, this one.
      max_dropped: a larger share of items without scores is an error.
      subtract_blind: also the scores minus those without picture.
      questions: the file of questions that were scored (`export.py`): its texts are those of the
        benchmark, and what it lost needs no scores. None: texts are as written, and of a
        results.json cleaned.

    Errors: as `score`.
    """
    if name not in BENCHMARKS:
        expected = f"one of {', '.join((*BENCHMARKS, 'retrieval'))}"
        raise ConfigError(f"benchmark {name!r}", expected, "check the spelling")
    check_scorer(scorer)
    LoadOptions(max_dropped=max_dropped).validate()
    if not path.exists():
        raise DataError(f"no file {str(path)!r}", "a file of scores", "check --scores")
    given = _of_scorer(read_scores(path), scorer, path)
    if questions is not None:  # what was lost when they were written cannot have scores
        lost = read_protocol(questions).get("dropped", {})
        count = sum(sum(reasons.values()) for reasons in lost.values())
        given = [replace(one, dropped=max(one.dropped, count)) for one in given]
    if data is None:
        found: Joined = [(_alone(name, one), [one.scored]) for one in given]
    else:
        loaded = _only(load_with(name, data, text_options(path, max_dropped, questions)), only)
        found = join(given, loaded, data, path, max_dropped)
    if not subtract_blind:
        return found
    if not any(one.blind is not None for _, all_of in found for one in all_of):
        expected = 'lines with "blind", the scores with a blank picture'
        raise ConfigError(f"--subtract-blind, but {path} has none", expected, "add them")
    return [(benchmark, with_corrected(all_of)) for benchmark, all_of in found]


def text_options(path: Path, max_dropped: float, questions: Path | None) -> LoadOptions:
    """How the texts were made that were scored. Arguments: of `joined`."""
    if questions is not None:
        return LoadOptions(max_dropped=max_dropped, **read_protocol(questions)["texts"])
    ours = path.suffix == ".json"
    return LoadOptions(max_dropped=max_dropped, clean=ours)


def check_scorer(scorer: str | None) -> None:
    """Raises ConfigError on a name that is none of `SCORERS`."""
    if scorer is not None and scorer not in SCORERS:
        close = difflib.get_close_matches(scorer, SCORERS, 1) or ["score"]
        remedy = f"did you mean {close[0]!r}"
        raise ConfigError(f"--scorer {scorer!r}", f"one of {', '.join(SCORERS)}", remedy)


def _of_scorer(given: Sequence[Given], scorer: str | None, path: Path) -> list[Given]:
    """Scores under the name of their scorer."""
    if scorer is None:
        return list(given)
    names = list(dict.fromkeys(one.scored.scorer for one in given))
    if scorer in names:
        return [one for one in given if one.scored.scorer == scorer]
    if names == ["score"] or names == ["probability"]:
        return [replace(one, scored=replace(one.scored, scorer=scorer)) for one in given]
    got, expected = f"--scorer {scorer!r}", f"one of {', '.join(names)}, which {path} has"
    raise ConfigError(got, expected, "name one of them")


def _only(loaded: tuple[Benchmark, ...], name: str) -> tuple[Benchmark, ...]:
    found = tuple(benchmark for benchmark in loaded if name in ("", benchmark.name))
    if not found:
        expected = f"one of {', '.join(benchmark.name for benchmark in loaded)}"
        raise ConfigError(f"--only {name!r}", expected, "name one of them")
    return found


def _alone(name: str, given: Given) -> Benchmark:
    """The benchmark that a published score file implies."""
    if given.kind == "cells":
        raise ConfigError(
            f"scores of {name} by key, without --data", "the annotation files", "pass --data DIR"
        )
    if given.kind != name:
        got = f"scores of {given.kind} for benchmark {name!r}"
        raise ConfigError(got, f"scores of {name}", f"name the benchmark {given.kind}")
    return alone(given)

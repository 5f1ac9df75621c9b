"""Score files in the forms that e-bug/fine-grained-evals publishes, and what they say alone.

A line is of VALSE {instrument, id, type: caption or foil, score}, of Winoground {label:
ID_cCAPTION_iPICTURE, score}, of VSR {id, label: 0 or 1, relation, score}, of SVO-Probes {label:
ID_p or ID_n, subj_neg, verb_neg, obj_neg, score}. Scores are probabilities.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.evals.benchmarks import svo, valse, vsr
from nas_jax.evals.benchmarks.pictures import NoPictures
from nas_jax.evals.questions import Benchmark, Question, Scored
from nas_jax.evals.score_files import Given, Lines, number_of, where
from nas_jax.utils.errors import DataError

PROBABILITY = "probability"
Cell = tuple[int, Any, int, Any]
"""(line number, item, place in the item, score)."""


def reader_of(first: Mapping[str, Any]) -> Callable[[Path, Lines], Given] | None:
    """What reads a file with such a first line; None: no published form."""
    label = first.get("label")
    if {"instrument", "type", "id"} <= set(first):
        return _from_valse
    if "score" in first and {"relation", "id"} <= set(first):
        return _from_vsr
    if "score" in first and set(svo.FLAGS) <= set(first):
        return _from_svo
    if "score" in first and isinstance(label, str):
        return _from_winoground
    return None


def _collect(path: Path, cells: Iterable[Cell], size: int) -> dict[Any, np.ndarray]:
    """Item -> its `size` scores. Each place must come once."""
    found: dict[Any, dict[int, float]] = {}
    for number, item, place, score in cells:
        scores = found.setdefault(item, {})
        if place in scores:
            got = f"{where(path, number)}: item {item} has this score twice"
            raise DataError(got, "each once", "remove one of the lines")
        scores[place] = number_of(f"{where(path, number)}, item {item}", score)
    for item, scores in found.items():
        if len(scores) < size:
            got = f"{path}: item {item} has {len(scores)} scores"
            raise DataError(got, f"{size}", "copy the file again")
    return {
        item: np.array([scores[place] for place in range(size)], np.float64)
        for item, scores in found.items()
    }


def _bad_line(path: Path, number: int, line: Mapping[str, Any], expected: str) -> DataError:
    shown = ", ".join(f"{name} {value!r}" for name, value in line.items() if name != "score")
    return DataError(f"{where(path, number)}: {shown[:80]}", expected, "mend that line")


def _from_valse(path: Path, lines: Lines) -> Given:
    places, cells = {"caption": 0, "foil": 1}, []
    for number, line in lines:
        try:
            item = line["instrument"], int(line["id"])
            cells.append((number, item, places[line["type"]], line["score"]))
        except (KeyError, TypeError, ValueError) as error:
            expected = "instrument, id (a number), type (caption or foil) and score"
            raise _bad_line(path, number, line, expected) from error
    found = _collect(path, cells, 2)
    return Given(
        "valse", tuple(found), Scored(PROBABILITY, [pair[None] for pair in found.values()])
    )


def _from_winoground(path: Path, lines: Lines) -> Given:
    cells = []
    for number, line in lines:
        label = line.get("label")
        match = re.fullmatch(r"(.+)_c([01])_i([01])", label) if isinstance(label, str) else None
        if match is None:
            raise _bad_line(path, number, line, "a label from ID_c0_i0 to ID_c1_i1")
        cells.append((number, match[1], 2 * int(match[3]) + int(match[2]), line.get("score")))
    found = _collect(path, cells, 4)
    scored = Scored(PROBABILITY, [four.reshape(2, 2) for four in found.values()])
    return Given("winoground", tuple(found), scored)


def _from_vsr(path: Path, lines: Lines) -> Given:
    """Ids count from 0; the loader's keys are line numbers, from 1."""
    cells, facts = [], []
    for number, line in lines:
        label, item = line.get("label"), line.get("id")
        good = label in (0, 1) and isinstance(line.get("relation"), str)
        if not isinstance(item, int) or isinstance(item, bool) or not good:
            raise _bad_line(path, number, line, "id (a number), label 0 or 1, relation")
        cells.append((number, str(item + 1), 0, line.get("score")))
        facts.append((label == 1, line["relation"]))
    found = _collect(path, cells, 1)
    scored = Scored(PROBABILITY, [one[None] for one in found.values()])
    return Given("vsr", tuple(found), scored, facts=tuple(facts))


def _from_svo(path: Path, lines: Lines) -> Given:
    cells, facts = [], {}
    for number, line in lines:
        label = line.get("label")
        match = re.fullmatch(r"(.+)_([pn])", label) if isinstance(label, str) else None
        kinds = svo.kinds(line)
        if match is None or len(kinds) != 1:
            raise _bad_line(path, number, line, "a label ID_p or ID_n, and one kind of negative")
        cells.append((number, match[1], "pn".index(match[2]), line.get("score")))
        facts[match[1]] = kinds[0]
    found = _collect(path, cells, 2)
    scored = Scored(PROBABILITY, [pair[:, None] for pair in found.values()])
    return Given("svo", tuple(found), scored, facts=tuple(facts.values()))


# ------------------------------------------------------------------- without the annotation files


def alone(given: Given) -> Benchmark:
    """The benchmark that a published score file implies.

    One picture each, as the file does not say which examples share one.
    """
    keys = given.keys
    if given.kind == "winoground":
        quads = tuple(
            Question(key, "none", (2 * i, 2 * i + 1), ("", "")) for i, key in enumerate(keys)
        )
        pictures = NoPictures(2 * len(quads))
        return Benchmark("winoground", "quad", quads, pictures, {}, headline="all/group")
    if given.kind == "valse":
        pairs = tuple(
            Question(f"{piece}/{number}", piece, (index,), ("", ""))
            for index, (piece, number) in enumerate(keys)
        )
        pictures = NoPictures(len(pairs))
        return Benchmark("valse", "choice", pairs, pictures, {}, groups=valse.GROUPS, absolute=True)
    if given.kind == "vsr":
        facts = zip(keys, given.facts, strict=True)
        sentences = tuple(
            Question(key, vsr.kind_of(relation), (index,), ("",), true)
            for index, (key, (true, relation)) in enumerate(facts)
        )
        return Benchmark("vsr", "yes_no", sentences, NoPictures(len(sentences)), {})
    # The sentence is not in the file: every one is another, so p_pos and p_neg are not the
    # authors', and are left out.
    rows = tuple(
        Question(key, kind, (2 * index, 2 * index + 1), (key,))
        for index, (key, kind) in enumerate(zip(keys, given.facts, strict=True))
    )
    return Benchmark("svo", "picture", rows, NoPictures(2 * len(rows)), {})

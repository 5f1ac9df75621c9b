"""Scores that exist already, read from the files that `evals/score.py` lists."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.evals.questions import Scored
from nas_jax.utils.errors import DataError


@dataclass(frozen=True)
class Given:
    """Scores of some items. `keys` are those of the published files, or of our benchmarks."""

    kind: str  # "valse", "winoground", "cells"
    keys: tuple[Any, ...]
    scored: Scored


def read_scores(path: Path, name: str) -> list[Given]:
    """The scores in a file; several where it is a results.json with several scorers.

    Args:
      path: a jsonl or results.json.
      name: benchmark that is looked for in a results.json.

    Raises:
      DataError: a file of another form, with lines missing or twice.
    """
    if path.suffix == ".json":
        return _from_results(path, name)
    lines = _read_lines(path)
    first = lines[0] if lines and isinstance(lines[0], Mapping) else {}
    if {"instrument", "type", "id"} <= set(first):
        return [_from_valse(path, lines)]
    if "label" in first:
        return [_from_winoground(path, lines)]
    if {"key", "scores"} <= set(first):
        return [_from_cells(path, lines)]
    got = f"{path}: lines with {', '.join(map(str, first)) or 'nothing'}"
    raise DataError(got, "lines of VALSE, of Winoground, or {key, scores}", "see --help")


def _read_lines(path: Path) -> list[Any]:
    try:
        data = path.read_bytes()
        content = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}", "a readable jsonl file", "check the path") from error
    try:
        return [json.loads(line) for line in content.split("\n") if line.strip()]
    except ValueError as error:
        raise DataError(
            f"{path}: {error}", "one json object a line", "copy it again; it may be cut short"
        ) from error


def _collect(path: Path, cells: Iterable[tuple[Any, int, Any]], size: int) -> dict[Any, np.ndarray]:
    """(item, place, score) -> item -> its `size` scores. Each place must come once."""
    found: dict[Any, dict[int, float]] = {}
    for item, place, score in cells:
        scores = found.setdefault(item, {})
        if place in scores:
            got = f"{path}: item {item} has a score twice"
            raise DataError(got, "each once", "remove the copies")
        if isinstance(score, bool) or not isinstance(score, int | float):
            got = f"{path}: item {item} with score {score!r}"
            raise DataError(got, "a number", "mend that line")
        scores[place] = score
    for item, scores in found.items():
        if len(scores) < size:
            got = f"{path}: item {item} has {len(scores)} scores"
            raise DataError(got, f"{size}", "copy the file again")
    return {
        item: np.array([scores[place] for place in range(size)], np.float64)
        for item, scores in found.items()
    }


def _from_valse(path: Path, lines: Sequence[Any]) -> Given:
    places = {"caption": 0, "foil": 1}
    try:
        cells = [
            ((line["instrument"], int(line["id"])), places[line["type"]], line["score"])
            for line in lines
        ]
    except (KeyError, TypeError, ValueError) as error:
        got = f"{path}: {error!r} in a line"
        raise DataError(got, "instrument, id, type, score", "mend the file") from error
    found = _collect(path, cells, 2)
    cells = [scores[None] for scores in found.values()]
    return Given("valse", tuple(found), Scored("probability", cells))


def _from_winoground(path: Path, lines: Sequence[Any]) -> Given:
    cells = []
    for line in lines:
        label = line.get("label") if isinstance(line, Mapping) else None
        match = re.fullmatch(r"(.+)_c([01])_i([01])", label) if isinstance(label, str) else None
        if match is None:
            raise DataError(f"{path}: label {label!r}", "ID_c0_i0 to ID_c1_i1", "mend that line")
        cells.append((match[1], 2 * int(match[3]) + int(match[2]), line.get("score")))
    found = _collect(path, cells, 4)
    cells = [four.reshape(2, 2) for four in found.values()]
    return Given("winoground", tuple(found), Scored("probability", cells))


def _from_cells(path: Path, lines: Sequence[Any]) -> Given:
    keys, cells = [], []
    for line in lines:
        try:
            keys.append(str(line["key"]))
            cells.append(np.array(line["scores"], np.float64))
        except (KeyError, TypeError, ValueError) as error:
            got = f"{path}: {error!r} in a line"
            raise DataError(got, "key and scores", "mend that line") from error
    if len(set(keys)) < len(keys):
        raise DataError(f"{path}: a key comes twice", "each once", "remove the copies")
    return Given("cells", tuple(keys), Scored("score", cells))


def _from_results(path: Path, name: str) -> list[Given]:
    from nas_jax.evals import results

    found = next((result for result in results.read(path)[1] if result.name == name), None)
    if found is None:
        got, remedy = f"{path} without {name!r}", "check which run it is of"
        raise DataError(got, "results of that benchmark", remedy)
    return [
        Given("cells", found.keys, Scored(scorer, [np.array(cell, np.float64) for cell in cells]))
        for scorer, cells in found.scores.items()
    ]

"""Scores that exist already, read from the files that `evals/score.py` lists."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.evals.questions import FORMS, Scored
from nas_jax.utils.errors import DataError

Lines = Sequence[tuple[int, Mapping[str, Any]]]
"""(line number, object) of a jsonl file."""


@dataclass(frozen=True)
class Given:
    """Scores of some items. `keys` are those of the published files, or of our benchmarks."""

    kind: str  # "valse", "winoground", "vsr", "svo", "cells"
    keys: tuple[Any, ...]
    scored: Scored
    benchmark: str = ""  # the one that the file says they are of; "": it does not say
    dropped: int = 0  # items that a results.json says were left out
    # of vsr (true, relation), of svo the kind of negative, of each item
    facts: tuple[Any, ...] = ()


def read_scores(path: Path) -> list[Given]:
    """The scores in a file; several where it is a results.json, or has several benchmarks.

    Raises:
      DataError: a file of another form, with lines missing or twice, or a score that is no number.
    """
    from nas_jax.evals import score_published

    if path.suffix == ".json":
        return _from_results(path)
    lines = _read_lines(path)
    first = lines[0][1] if lines else {}
    if {"key", "scores"} <= set(first):
        return _from_cells(path, lines)
    read = score_published.reader_of(first)
    if read is not None:
        return [read(path, lines)]
    got = f"{path}: lines with {', '.join(map(str, first)) or 'nothing'}"
    expected = "{key, scores}, or the published lines of VALSE, Winoground, VSR or SVO-Probes"
    raise DataError(got, expected, "see python -m nas_jax.evals.score --help")


def _read_lines(path: Path) -> Lines:
    try:
        data = path.read_bytes()
        packed = data.startswith(b"\x1f\x8b")
        content = (gzip.decompress(data) if packed else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}", "a readable jsonl file", "check the path") from error
    found = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            got, remedy = f"{where(path, number)}: {error}", "mend it; the file may be cut short"
            raise DataError(got, "one json object a line", remedy) from error
        if not isinstance(entry, Mapping):
            got = f"{where(path, number)}: {line.strip()[:40]}"
            raise DataError(got, "one json object a line", "mend that line")
        found.append((number, entry))
    return found


def where(path: Path, number: int) -> str:
    """A line of a file, for messages."""
    return f"{path}, line {number}"


def number_of(place: str, value: Any) -> float:
    """A score. Raises DataError on anything but a finite number. place: for the message."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        shown = json.dumps(value)[:40]
        remedy = "give it a score, or leave the item out and raise --max-dropped"
        raise DataError(f"{place}: score {shown}", "a finite number without quotes", remedy)
    return float(value)


def _array(place: str, value: Any) -> np.ndarray:
    """Scores of an item, (pictures, texts), or (cells,) where they are one list."""
    if isinstance(value, list) and value and all(isinstance(row, list) and row for row in value):
        if len({len(row) for row in value}) > 1:
            lengths = ", ".join(str(len(row)) for row in value)
            expected = "one list a picture, each with one score a text"
            raise DataError(f"{place}: lists of {lengths} scores", expected, "mend that line")
        return np.array([[number_of(place, one) for one in row] for row in value])
    if isinstance(value, list) and value:
        return np.array([number_of(place, one) for one in value])
    got = f"{place}: scores {json.dumps(value)[:40]}"
    raise DataError(got, "one list a picture, each with one score a text", "mend that line")


def _from_cells(path: Path, lines: Lines) -> list[Given]:
    """One `Given` a benchmark that lines name, and one for those that name none."""
    groups: dict[str, dict[str, tuple[np.ndarray, np.ndarray | None]]] = {}
    for number, line in lines:
        place = where(path, number)
        key, name = line.get("key"), line.get("benchmark") or ""
        if isinstance(key, bool) or not isinstance(key, str | int) or "scores" not in line:
            got = f"{place}: fields {', '.join(map(str, line))}"
            raise DataError(got, "key (a text) and scores", "mend that line")
        if not isinstance(name, str):
            raise DataError(f"{place}: benchmark {name!r}", "a name", "mend that line")
        group = groups.setdefault(name, {})
        if str(key) in group:
            raise DataError(f"{place}: a second line of key {key!r}", "each once", "remove one")
        blind = line.get("blind")
        group[str(key)] = (
            _array(place, line["scores"]),
            None if blind is None else _array(place, blind),
        )
    return [_cells_given(path, name, group) for name, group in groups.items()]


def _cells_given(path: Path, name: str, group: Mapping[str, tuple]) -> Given:
    blind = [cell for _, cell in group.values() if cell is not None]
    if 0 < len(blind) < len(group):
        got = f"{path}: blind scores of {len(blind)} of {len(group)} items"
        raise DataError(got, "blind in every line or in none", "score the others without picture")
    seen = [cell for cell, _ in group.values()]
    return Given("cells", tuple(group), Scored("score", seen, blind or None), name)


def _from_results(path: Path) -> list[Given]:
    """Every benchmark of a results.json under every scorer."""
    from nas_jax.evals import results

    out = []
    for result in results.read(path)[1]:
        if result.form not in FORMS or not all(map(_are_cells, result.scores.values())):
            continue  # retrieval and classes have ranks
        for scorer, cells in result.scores.items():
            blind = result.blind.get(scorer)
            scored = Scored(scorer, _arrays(cells), None if blind is None else _arrays(blind))
            lost = sum(result.dropped.values())
            out.append(Given("cells", result.keys, scored, result.name, lost))
    return out


def _are_cells(cells: list) -> bool:
    return all(isinstance(cell, list) for cell in cells)


def _arrays(cells: list) -> list[np.ndarray]:
    return [np.array(cell, np.float64) for cell in cells]

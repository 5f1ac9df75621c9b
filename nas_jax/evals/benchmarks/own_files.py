"""The lines of a file of anyone's own questions: jsonl, a json array or object, or csv."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_jax.data.pair_lines import read_lines
from nas_jax.evals.benchmarks.reading import read_json, read_table
from nas_jax.utils.errors import DataError

# columns of a csv that are joined to a list: foil_1, foil_2, ... -> foils
LISTS = {"foil": "foils", "foil_image": "foil_images", "kind": "kinds"}
BOXES = ("box", "box_0", "box_1")


def entries_of(path: Path) -> list[tuple[int, Any]]:
    """(line number, object). Of a json object {id: entry} the entries get its names as id.

    Raises DataError where the file cannot be read.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        return list(enumerate(map(_from_row, read_table(path, ("caption",))), start=2))
    if name.endswith(".json"):
        try:
            content = read_json(path, dict)
        except DataError:
            return read_lines(path)  # an array
        if all(isinstance(entry, Mapping) for entry in content.values()):
            entries = ({"id": key, **entry} for key, entry in content.items())
            return list(enumerate(entries, start=1))
    return read_lines(path)


def _from_row(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of a csv; empty cells are left out."""
    entry: dict[str, Any] = {}
    for column, value in row.items():
        if not isinstance(value, str) or not value.strip():
            continue
        match = re.fullmatch(r"(.+?)_?(\d+)", column)
        if match and match[1] in LISTS:
            entry.setdefault(LISTS[match[1]], []).append(value)
        else:
            entry[column] = _numbers(value) if column in BOXES else value
    return entry


def _numbers(value: str) -> Any:
    """`12 3 40 50`, `12,3,40,50` or `[12, 3, 40, 50]` as a list; else the text."""
    words = re.split(r"[\s,;]+", value.strip().strip("[]()").strip())
    try:
        return [json.loads(word) for word in words]
    except ValueError:
        return value

"""Annotation files: read whole, with one clear line where they are not what they should be."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nas_jax.data import pair_lines
from nas_jax.data.pair_lines import read_text
from nas_jax.data.sources import Report
from nas_jax.utils.errors import DataError

Made = TypeVar("Made")
Found = TypeVar("Found")


class Unusable(ValueError):
    """An item that cannot be asked. `reason` is what it is counted under, `example` names it."""

    def __init__(self, reason: str, example: str = ""):
        self.reason, self.example = reason, example
        super().__init__(f"{reason} ({example})")

    def __reduce__(self):
        return type(self), (self.reason, self.example)


def find(data_dir: Path, *names: str) -> Path:
    """The first of several paths that exists. Raises DataError that names what was looked for."""
    for name in names:
        if (data_dir / name).is_file():
            return data_dir / name
    expected = names[0] + (f" (or {', '.join(names[1:])})" if len(names) > 1 else "")
    raise DataError(
        f"no {names[0]} in {data_dir}",
        expected,
        "see docs/benchmarks.md for the files of each benchmark",
    )


def read_json(path: Path, kind: type) -> Any:
    """A json file that holds a `kind` (list or dict)."""
    whole = read_text(path)
    try:
        content = json.loads(whole)
    except ValueError as error:
        raise DataError(
            f"{path}: {error}", "a json file", "copy it again; it may be cut short"
        ) from error
    if not isinstance(content, kind):
        raise DataError(
            f"{path} holds a {type(content).__name__}",
            f"a {kind.__name__}",
            "check which file it is",
        )
    return content


def read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a csv file that has `columns`."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # lists of texts stand in one field
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    missing = [name for name in columns if name not in (table.fieldnames or ())]
    if missing:
        raise DataError(
            f"{path} without column {missing[0]!r}", ", ".join(columns), "check which file it is"
        )
    return list(table)


def each(
    entries: Iterable[tuple[Any, Any]], make: Callable[[Any, Any], Made], report: Report
) -> list[Made]:
    """`make(name, entry)` of each entry; those it finds unusable are counted in `report`."""
    out = []
    for name, entry in entries:
        try:
            out.append(make(name, entry))
        except Unusable as error:
            report.drop(error.reason, error.example or str(name))
    return out


def text(entry: Any, field: str) -> str:
    """A text field of an entry. Raises Unusable where it is missing, empty or no text."""
    return _usable(pair_lines.text_of(entry, field), field)


def category_of(entry: Any, field: str = "category") -> str:
    """A category, given as text or number; "none" where there is none.

    Raises Unusable otherwise.
    """
    return _usable(pair_lines.category_of(entry, field), field)


def foils_of(entry: Any) -> tuple[str, ...]:
    """The wrong captions of a pair. Raises Unusable where there is none, or one is no text."""
    return tuple(_usable(pair_lines.foils_of(entry), "foil"))


def whole(entry: Any, field: str) -> int:
    """A whole number, given as a number or as text. Raises Unusable otherwise."""
    value: Any = entry.get(field) if isinstance(entry, Mapping) else None
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise Unusable(f"no {field}") from error


def name_of(entry: Any, field: str) -> str:
    """A file name or number, as text. Raises Unusable otherwise."""
    return _usable(pair_lines.picture_name(entry, field), field)


def _usable(value: Found | None, field: str) -> Found:
    if value is None:
        raise Unusable(f"no {field}")
    return value

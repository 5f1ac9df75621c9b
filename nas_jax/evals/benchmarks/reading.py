"""Annotation files: read whole, with one clear line where they are not what they should be."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nas_jax.data.sources import Report
from nas_jax.utils.errors import DataError

Made = TypeVar("Made")


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
    try:
        content = json.loads(read_text(path))
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


def read_lines(path: Path) -> list[tuple[int, Any]]:
    """(line number, object) of a jsonl file; of a json array, which is read as well, (place from 1
    on, entry).
    """
    whole = read_text(path)
    if whole.lstrip().startswith("["):
        try:
            return list(enumerate(json.loads(whole), start=1))
        except ValueError as error:
            raise DataError(
                f"{path}, a json array: {error}",
                "one json object a line, or a whole array",
                "copy it again; it may be cut short",
            ) from error
    out = []
    for number, line in enumerate(whole.split("\n"), start=1):
        if line.strip():
            try:
                out.append((number, json.loads(line)))
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number}: {error}", "one json object a line", "mend it"
                ) from error
    return out


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


def read_text(path: Path) -> str:
    """Of a UTF-8 or marked UTF-16 file, which may be packed with gzip."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if wide else "utf-8-sig").replace("\r\n", "\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {error}", "a readable file", "check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error}", "a UTF-8 file", "save as UTF-8") from error


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
    value = entry.get(field) if isinstance(entry, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise Unusable(f"no {field}")
    return value


def category_of(entry: Any, field: str = "category") -> str:
    """A category, given as text or number; "none" where there is none.

    Raises Unusable otherwise.
    """
    value = entry.get(field) if isinstance(entry, Mapping) else None
    if value is None or value == "":
        return "none"
    if not isinstance(value, str | int | float):
        raise Unusable(f"no {field}")
    return str(value)


def whole(entry: Any, field: str) -> int:
    """A whole number, given as a number or as text. Raises Unusable otherwise."""
    value = entry.get(field) if isinstance(entry, Mapping) else None
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise Unusable(f"no {field}") from error


def name_of(entry: Any, field: str) -> str:
    """A file name or number, as text. Raises Unusable otherwise."""
    value = entry.get(field) if isinstance(entry, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise Unusable(f"no {field}")
    return str(value)

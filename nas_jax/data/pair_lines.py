"""Files with an object a line about pictures and their captions: data.foils, data.quads, and the
annotations of benchmarks. One reader, and one set of fields.

    {image, caption, foil}                          category, id
    {image_0, image_1, caption_0, caption_1}        category, id

A file may be packed with gzip, in UTF-16 with its mark, and may hold one json array. A picture's
name may be a number. `foil` may be a list, and may be called as FOIL_FIELDS say.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from nas_jax.storage import reading
from nas_jax.utils.errors import DataError

FOIL_FIELDS = ("foil", "foils", "negative_caption", "negative_captions")


def read_text(path: str | os.PathLike, remedy: str = "check the path") -> str:
    """A text file of UTF-8 or marked UTF-16, which may be packed with gzip; line ends are \\n.

    Raises DataError; `remedy` is for a file that cannot be read.
    """
    try:
        data = reading.read_bytes(str(path))
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if wide else "utf-8-sig").replace("\r\n", "\n")
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: {what}", "a readable file", remedy) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error}", "a UTF-8 file", "save as UTF-8") from error


def read_lines(path: str | os.PathLike, remedy: str = "check the path") -> list[tuple[int, Any]]:
    """(line number, object) of each line but empty ones; of a json array (place from 1 on, entry).

    Raises DataError, with the line, where one is no json.
    """
    whole = read_text(path, remedy)
    if whole.lstrip().startswith("["):
        try:
            return list(enumerate(json.loads(whole), start=1))
        except ValueError as error:
            raise DataError(
                f"{path}, a json array: {error}",
                "one json object a line, or a whole array",
                "copy it again; it may be cut short",
            ) from error
    found = []
    for number, line in enumerate(whole.split("\n"), start=1):  # a text may hold other line ends
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number}: {error}", "one json object a line", "mend that line"
                ) from error
    return found


def read_pairs(
    path: str, names: Sequence[str], texts: Sequence[str] = ()
) -> list[tuple[int, dict]]:
    """(line, object) of data.foils or data.quads, with the fields `names` of pictures, as texts,
    and the fields `texts`.

    Raises DataError, with the line, where one lacks a field.
    """
    entries = []
    for number, entry in read_lines(path, "check data.foils and data.quads"):
        found = {name: picture_name(entry, name) for name in names}
        found |= {name: text_of(entry, name) for name in texts}
        if missing := [name for name, value in found.items() if value is None]:
            expected = ", ".join((*names, *texts))
            raise DataError(
                f"{path}, line {number}, without {missing[0]!r}", expected, "mend that line"
            )
        entries.append((number, {**entry, **found}))
    return entries


# ------------------------------------------------------------------------------------------- fields


def _value(entry: Any, field: str) -> Any:
    return entry.get(field) if isinstance(entry, Mapping) else None


def text_of(entry: Any, field: str) -> str | None:
    """A text field, None where it is missing, empty or no text."""
    value = _value(entry, field)
    return value if isinstance(value, str) and value.strip() else None


def picture_name(entry: Any, field: str) -> str | None:
    """A file name or number, as text; None otherwise."""
    value = _value(entry, field)
    usable = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value) if usable and str(value).strip() else None


def category_of(entry: Any, field: str = "category") -> str | None:
    """A category, given as text or number; "none" where there is none; None for anything else."""
    value = _value(entry, field)
    if value is None or value == "":
        return "none"
    return str(value) if isinstance(value, str | int | float) else None


def foils_of(entry: Any) -> list[str] | None:
    """The wrong captions of a pair, None where there is none, or one is no text."""
    values = (_value(entry, name) for name in FOIL_FIELDS)
    given = next((value for value in values if value is not None), None)
    given = given if isinstance(given, list) else [given]
    usable = all(isinstance(text, str) and text.strip() for text in given)
    return given if given and usable else None


# -------------------------------------------------------------------------------------------- names


def first_word(path: str | os.PathLike) -> str:
    """Of a file name, up to the first - _ or dot: "noto-foils.jsonl" is about "noto.tar"."""
    return re.split(r"[-_.]", os.path.basename(path))[0]

"""Under which names a list has its pictures and captions: the one table of them.

Names are tried from the left. In the header of a table (csv, tsv, parquet) upper and lower case
are the same; in json they are written as here.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from typing import Any

IMAGE_FIELDS = (
    "image",
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "path",
    "img_path",
    "image_path",
    "image_name",
    "img",
    "f_path",
)
"""A path, from where the list lies or from --image-root; in parquet also bytes."""
BYTES_FIELDS = ("jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
"""Further columns of parquet that hold pictures."""
CAPTION_FIELDS = (
    "caption",
    "text",
    "captions",
    "title",
    "texts",
    "sentence",
    "sentences",
    "comment",
    "txt",
)
"""A text, or a list of texts (or of objects with `raw`, as Karpathy has them)."""
KEY_FIELDS = ("__key__", "key", "id", "image_id", "img_id")
"""Parquet: what names a picture whose bytes come without a path."""
URL_FIELDS = ("url", "image_url", "img_url")
"""Addresses in the web: nothing is downloaded."""


def image_of(entry: Any) -> str | None:
    """The path of an entry's picture, None where it has none."""
    if not isinstance(entry, dict):
        return None
    return next(
        (entry[name] for name in IMAGE_FIELDS if isinstance(entry.get(name), str) and entry[name]),
        None,
    )


def captions_of(entry: Any) -> list[str] | None:
    """All captions of an entry, None where it has no such field."""
    if not isinstance(entry, dict):
        return None
    found = next((entry[name] for name in CAPTION_FIELDS if entry.get(name) is not None), None)
    return texts_of(found)


def texts_of(found: Any) -> list[str] | None:
    """The texts of a field, None where it is neither a text nor a list."""
    if isinstance(found, str):
        return [found]
    if not isinstance(found, list | tuple):
        return None
    texts = (part.get("raw") if isinstance(part, dict) else part for part in found)
    return [text for text in texts if isinstance(text, str)]


def listed(value: Any) -> Any:
    """A list that stands in a text, as json or as Python writes it; other values as they are."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list | dict):
            return found
    return value


def url_advice(names: Iterable[str], path: str) -> str:
    """What to do with a list of addresses, "" where it is none."""
    names = list(names)
    url = next((name for name in names if name.lower() in URL_FIELDS), None)
    if url is None:
        return ""
    caption = next((name for name in names if name.lower() in CAPTION_FIELDS), "CAPTION")
    return (
        "these are addresses; download the pictures first, for example with img2dataset "
        f"--url_list {path} --url_col {url} --caption_col {caption} --output_format webdataset "
        "--output_folder DIR, and prepare DIR"
    )

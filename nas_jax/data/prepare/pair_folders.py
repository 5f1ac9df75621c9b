"""Folders of KEY.jpg beside KEY.txt or KEY.json: img2dataset's output format "files".

Captions are those of a tar with the same files: `caption` and `captions` of the json, else the txt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from nas_jax.data.prepare.items import InputPair, Loss, Unit, mended_captions, printable
from nas_jax.data.tar_names import IMAGE_SUFFIXES

TEXT_SUFFIXES = ("json", "txt")


def parts_of(names: list[str]) -> dict[str, dict[str, str]]:
    """Key -> suffix -> file name, of the files of pictures and captions in a folder, sorted."""
    parts: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        key, dot, suffix = name.rpartition(".")
        if dot and key and suffix.lower() in (*IMAGE_SUFFIXES, *TEXT_SUFFIXES):
            parts.setdefault(key, {})[suffix.lower()] = name
    return parts


def picture_of(parts: dict[str, str]) -> str | None:
    """The file name of the picture."""
    return next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)


def is_pair(parts: dict[str, str]) -> bool:
    """Whether a picture has a text beside it."""
    return picture_of(parts) is not None and any(suffix in parts for suffix in TEXT_SUFFIXES)


def pictures_in(folder: str) -> dict[str, dict[str, str]]:
    """`parts_of` a folder, of what has a picture."""
    parts = parts_of(os.listdir(folder))
    return {key: found for key, found in parts.items() if picture_of(found)}


def read_pair_folder(unit: Unit) -> Iterator[InputPair | Loss]:
    """The pictures of a unit; its start and end count the sorted keys of the folder."""
    for key in sorted(found := pictures_in(unit.path))[unit.start : unit.end]:
        parts, path = found[key], Path(unit.path)
        name = printable(key)
        try:
            texts, damaged = _captions(path, parts)
            image = (path / picture_of(parts)).read_bytes()
        except OSError as error:
            yield Loss("unreadable file", name, unit.path, str(error))
            continue
        captions, mended = mended_captions(texts)
        if captions:
            yield InputPair(name, image, captions, len(texts), mended, unit.path)
        else:
            yield Loss("damaged json" if damaged else "no caption", name, unit.path, "", len(texts))


def _captions(folder: Path, parts: dict[str, str]) -> tuple[list[str], bool]:
    """All captions of a key, and whether its json is unreadable. Raises OSError."""
    captions: list = []
    damaged = False
    if "json" in parts:
        data = (folder / parts["json"]).read_bytes()
        try:
            fields = json.loads(data.decode("utf-8-sig", "surrogateescape"), strict=False)
            more = fields.get("captions") or []
            captions = [fields.get("caption"), *(more if isinstance(more, list) else [more])]
        except (ValueError, AttributeError, RecursionError):
            damaged = True
    texts = [text for text in captions if isinstance(text, str)]
    if "txt" in parts and not texts:
        texts = [(folder / parts["txt"]).read_bytes().decode("utf-8-sig", "surrogateescape")]
    return list(dict.fromkeys(texts)), damaged

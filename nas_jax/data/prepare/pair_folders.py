"""Folders of KEY.jpg beside KEY.txt or KEY.json: img2dataset's output format "files".

Captions are those of a tar with the same files: `caption` and `captions` of the json, else the txt.

With --groups, a folder of such folders, each of which holds the variations of one picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from nas_jax.data.negative_fields import Against, against_of, as_fields, captions_in
from nas_jax.data.prepare.items import (
    InputPair,
    Loss,
    Unit,
    mended_against,
    mended_captions,
    printable,
)
from nas_jax.data.tar_names import IMAGE_SUFFIXES
from nas_jax.utils.errors import DataError

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
        yield _read_pair(unit.path, key, found[key])


def _read_pair(folder: str, key: str, parts: dict[str, str], group: str = "") -> InputPair | Loss:
    """group: the name of the folder in `folder` that the files lie in, if they lie in one."""
    name, place = printable(os.path.join(group, key)), Path(folder, group)
    try:
        texts, damaged, against = _texts(place, parts)
        image = (place / picture_of(parts)).read_bytes()
    except OSError as error:
        return Loss("unreadable file", name, folder, str(error))
    captions, mended = mended_captions(texts)
    if not captions:
        return Loss("damaged json" if damaged else "no caption", name, folder, "", len(texts))
    against = against._replace(group=printable(group)) if group else against
    return InputPair(name, image, captions, len(texts), mended, folder, against)


# ------------------------------------------------------------------------------------------- groups


def groups_in(folder: str) -> list[tuple[str, str, dict[str, str]]]:
    """(group, key, parts) of each picture in the folders of a folder, sorted.

    Raises DataError where there is none.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    found = [
        (name, key, parts)
        for name in names
        for key, parts in sorted(pictures_in(os.path.join(folder, name)).items())
    ]
    if not found:
        raise DataError(
            f"--groups with {folder}",
            "a folder for each group, with KEY.jpg beside KEY.txt or KEY.json in it",
            "name the folder that holds these folders, or leave --groups out",
        )
    return found


def read_groups(unit: Unit) -> Iterator[InputPair | Loss]:
    """The pictures of a unit; its start and end count what `groups_in` gives."""
    for group, key, parts in groups_in(unit.path)[unit.start : unit.end]:
        yield _read_pair(unit.path, key, parts, group)


def _texts(folder: Path, parts: dict[str, str]) -> tuple[list[str], bool, Against]:
    """All captions of a key, whether its json is unreadable, and what there is against it.

    Raises OSError.
    """
    fields: dict = {}
    damaged = False
    if "json" in parts:
        data = (folder / parts["json"]).read_bytes()
        try:
            fields = as_fields(
                json.loads(data.decode("utf-8-sig", "surrogateescape"), strict=False)
            )
        except (ValueError, TypeError, RecursionError):
            damaged = True
    texts = captions_in(fields)
    if "txt" in parts and not texts:
        texts = [(folder / parts["txt"]).read_bytes().decode("utf-8-sig", "surrogateescape")]
    return texts, damaged, mended_against(against_of(fields, texts))

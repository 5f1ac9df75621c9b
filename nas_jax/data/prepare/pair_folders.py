"""Folders of KEY.jpg beside KEY.txt or KEY.json: img2dataset's output format "files".

Captions and negatives are those of a tar with the same files; KEY.neg.jpg is a negative of KEY.jpg.
But for these, a key goes up to the last dot of a name.

With --groups, a folder of such folders, each of which holds the variations of one picture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nas_jax.data.annotations import read_sample
from nas_jax.data.picture_paths import Pictures
from nas_jax.data.prepare.items import (
    InputPair,
    Loss,
    Unit,
    mended_annotations,
    mended_captions,
    printable,
)
from nas_jax.data.prepare.lists import with_images
from nas_jax.data.tar_names import IMAGE_SUFFIXES, TEXT_SUFFIXES, is_negative, picture_of
from nas_jax.utils.errors import DataError


def parts_of(names: list[str]) -> dict[str, dict[str, str]]:
    """Key -> suffix -> file name, of the files of pictures and captions in a folder, sorted."""
    parts: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        key, dot, suffix = name.rpartition(".")
        suffix = suffix.lower()
        if dot and key and (suffix in (*IMAGE_SUFFIXES, *TEXT_SUFFIXES) or is_negative(suffix)):
            parts.setdefault(key, {})[suffix] = name
    for key in list(parts):
        base, _, last = key.rpartition(".")
        if picture_of(parts.get(base, {})):  # KEY.neg beside KEY
            moved = {suffix for suffix in parts[key] if is_negative(f"{last.lower()}.{suffix}")}
            parts[base] |= {f"{last.lower()}.{suffix}": parts[key].pop(suffix) for suffix in moved}
    return {key: found for key, found in parts.items() if found}


def is_pair(parts: dict[str, str]) -> bool:
    """Whether a picture has a text beside it."""
    return picture_of(parts) is not None and any(suffix in parts for suffix in TEXT_SUFFIXES)


class PairFiles(NamedTuple):
    """The files of one picture, by name."""

    picture: str
    parts: dict[str, str]  # suffix -> file, the picture too


def pictures_in(folder: str) -> dict[str, PairFiles]:
    """`parts_of` a folder, of what has a picture."""
    parts = parts_of(os.listdir(folder))
    return {
        key: PairFiles(picture, found)
        for key, found in parts.items()
        if (picture := picture_of(found))
    }


def read_pair_folder(unit: Unit) -> Iterator[InputPair | Loss]:
    """The pictures of a unit; its start and end count the sorted keys of the folder."""
    for key in sorted(found := pictures_in(unit.path))[unit.start : unit.end]:
        yield _read_pair(unit.path, key, found[key])


def _read_pair(folder: str, key: str, files: PairFiles, group: str = "") -> InputPair | Loss:
    """group: the name of the folder in `folder` that the files lie in, if they lie in one."""
    name, place = printable(os.path.join(group, key)), Path(folder, group)
    try:
        texts, damaged, annotations = read_sample(
            files.parts, lambda name: (place / name).read_bytes()
        )
        image = (place / files.picture).read_bytes()
    except OSError as error:
        return Loss("unreadable file", name, folder, str(error))
    captions, mended = mended_captions(texts)
    if not captions:
        return Loss("damaged json" if damaged else "no caption", name, folder, "", len(texts))
    annotations = annotations._replace(group=group or annotations.group)
    found, lost = with_images(mended_annotations(annotations), Pictures(str(place)))
    return InputPair(name, image, captions, len(texts), mended, folder, found, lost)


# ------------------------------------------------------------------------------------------- groups


def groups_in(folder: str) -> list[tuple[str, str, PairFiles]]:
    """(group, key, files) of each picture in the folders of a folder, sorted.

    Raises DataError where there is none.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    found = [
        (name, key, files)
        for name in names
        for key, files in sorted(pictures_in(os.path.join(folder, name)).items())
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
    for group, key, files in groups_in(unit.path)[unit.start : unit.end]:
        yield _read_pair(unit.path, key, files, group)

"""What can be prepared, cut into units of work and read picture by picture.

A unit is a tar, or some thousand neighbouring entries of a list; which ones follows from the inputs
alone. Lists of entries are streamed: a unit holds the bytes where it begins and ends.

    *.tar            WebDataset shards as img2dataset writes them
    *.json           ALBEF's list [{image, caption}]; COCO's captions {images, annotations};
                     Karpathy's splits of COCO and Flickr30k
                     {images: [{filename, split, sentences}]}
    *.jsonl, *.tsv   one picture a line, a path and one caption or several; a folder that holds one
                     such file
    tfds:NAME        a TensorFlow Datasets data set
"""

from __future__ import annotations

import codecs
import contextlib
import glob
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from nas_jax.data.prepare.items import InputPair, Loss, Unit, mended_captions, printable
from nas_jax.data.prepare.lists import (
    CAPTION_FIELDS,
    IMAGE_FIELDS,
    captions_of,
    columns_of,
    image_of,
    read_dict,
    read_list,
    stream_array,
    stream_lines,
)
from nas_jax.data.prepare.tars import BLOCK, check_tar, read_tar
from nas_jax.utils.errors import ConfigError, DataError

UNIT_ENTRIES = 5000  # entries of a list in one unit
_TRIED = 50  # pictures of a list of which at least one has to be there


def list_inputs(inputs: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, path) of each file in the given order, globs expanded; cheap, opens each file at most
    for its first bytes.

    Raises:
      DataError: an input that is missing, empty or of no known form.
    """
    found: list[tuple[str, str]] = []
    for given in inputs:
        if given.startswith("tfds:"):
            found.append(("tfds", given))
            continue
        pattern = os.path.expanduser(given)
        # Files with brackets in their names are themselves, not patterns.
        paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not paths:
            raise DataError(
                f"no file {given!r}", "a path or a glob that matches", "check the INPUT arguments"
            )
        for path in paths:
            if os.path.isdir(path):
                path = _file_of_folder(path)
            if (entry := (_kind(path), path)) not in found:
                found.append(entry)
    return found


def _file_of_folder(folder: str) -> str:
    if os.path.isfile(os.path.join(folder, "manifest.json")):
        raise DataError(
            f"{folder} is prepared already",
            "files to prepare",
            "use the folder in data.train as it is",
        )
    if os.path.isfile(os.path.join(folder, "dataset_info.json")):
        raise DataError(
            f"the folder {folder} of a TFDS data set", "tfds:DIR", f"write tfds:{folder}"
        )
    names = sorted(os.listdir(folder))
    lists = [name for name in names if name.endswith((".jsonl", ".tsv"))]
    if len(lists) == 1:
        return os.path.join(folder, lists[0])
    other = next(
        (suffix for suffix in (".tar", ".json") if any(name.endswith(suffix) for name in names)),
        None,
    )
    raise DataError(
        f"the folder {folder} with {len(lists)} files *.jsonl or *.tsv",
        "exactly one",
        f"name the files: {folder}/*{other}"
        if other and not lists
        else "name the one that is meant",
    )


def _kind(path: str) -> str:
    try:
        with open(path, "rb") as file:
            head = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
            file.seek(0)
            block = file.read(BLOCK)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}", "a readable file", "check the INPUT arguments"
        ) from error
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".tar":
        check_tar(path, block)
        return "webdataset"
    if suffix in (".jsonl", ".tsv"):
        return suffix[1:]
    if suffix == ".json" and head[:1] == b"[":
        return "albef"
    if suffix == ".json" and head[:1] == b"{":
        return "coco"  # or Karpathy's, which only the whole file shows
    raise DataError(
        f"{path}, which begins with {head[:20]!r}"
        if suffix == ".json"
        else f"{path} of no known form",
        "*.tar, *.json (a list, or COCO's captions), *.jsonl, *.tsv, a folder with one of the "
        "last two, or tfds:NAME",
        "convert it to one of these",
    )


def stat_inputs(listed: Sequence[tuple[str, str]]) -> list[list]:
    """What changes when a file does."""
    rows = []
    for kind, path in listed:
        stat = os.stat(path) if kind != "tfds" else None
        rows.append(
            [kind, os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
            if stat
            else [kind, path, 0, 0]
        )
    return rows


def plan(
    listed: Sequence[tuple[str, str]],
    image_root: str = "",
    splits: Sequence[str] = (),
    tfds_captions: str = "",
    size: int = UNIT_ENTRIES,
) -> Iterator[Unit]:
    """The units of the listed inputs, in order.

    Args:
      listed: what `list_inputs` returned.
      image_root: the folder that the picture paths of lists start from; "" is the folder of the
      list.
      splits: Karpathy: which splits to take.
      tfds_captions: tfds: the text feature with the captions, where the data set leaves that open.

    Raises:
      DataError: a list that is damaged, lacks the fields, or none of whose first pictures exists.
      ConfigError: splits for an input that has none, or the other way round.
    """
    used_splits = False
    for kind, path in listed:
        if kind == "tfds":
            count, columns = (
                len(open_tfds(path, tfds_captions)),
                (tfds_captions,) if tfds_captions else (),
            )
            for start in range(0, count, size):
                end = min(count, start + size)
                yield Unit(kind, path, 0, 0, start, end, end - start, columns=columns)
            continue
        stat = os.stat(path)
        base = {"path": path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        root = image_root or os.path.dirname(path) or "."
        if kind == "webdataset":
            yield Unit(kind, **base)
        elif kind == "coco":
            kind, entries = read_dict(path, splits)
            used_splits = used_splits or kind == "karpathy"
            _check_some_exist(path, root, [entry[0] for entry in entries[:_TRIED]])
            for start in range(0, len(entries), size):
                part = entries[start : start + size]
                yield Unit(
                    kind,
                    **base,
                    start=start,
                    end=start + len(part),
                    count=len(part),
                    root=root,
                    entries=part,
                )
        else:
            yield from _plan_list(kind, path, base, root, size)
    if splits and not used_splits:
        raise ConfigError(
            f"--split {','.join(splits)} without a Karpathy file",
            "a json with images[].split",
            "leave --split out",
        )


def _plan_list(kind: str, path: str, base: dict[str, Any], root: str, size: int) -> Iterator[Unit]:
    """Units of a list: cut after `size` entries or more, never between captions of one picture."""
    columns = columns_of(path) if kind == "tsv" else ()
    items = stream_array(path) if kind == "albef" else stream_lines(path, columns)
    start = end = count = total = 0
    last = None
    tried: list[str] = []
    checked = False
    for begin, stop, entry in items:
        image = image_of(entry)
        if not total and not (image and captions_of(entry) is not None):
            has = ", ".join(map(repr, entry)) if isinstance(entry, dict) else type(entry).__name__
            raise DataError(
                f"{path}, first entry, with {has or 'no field'}",
                f"a picture ({' | '.join(IMAGE_FIELDS)}) and captions "
                f"({' | '.join(CAPTION_FIELDS)})",
                "rename the fields",
            )
        if not checked and image:
            tried.append(image)
            if len(tried) == _TRIED:
                checked = _check_some_exist(path, root, tried) or True
        if not count or (count >= size and image != last):
            if count:
                yield Unit(
                    kind, **base, start=start, end=end, count=count, root=root, columns=columns
                )
            start, count = begin, 0
        end, last, count, total = stop, image, count + 1, total + 1
    if not total:
        raise DataError(
            f"{path} without an entry", "a list of pictures and captions", "check the file"
        )
    if not checked:
        _check_some_exist(path, root, tried)
    yield Unit(kind, **base, start=start, end=end, count=count, root=root, columns=columns)


def _check_some_exist(path: str, root: str, images: Sequence[str]) -> None:
    """A few dead paths are losses; where none of the first exists, the root is wrong."""
    for image in images:
        with contextlib.suppress(ValueError):  # a NUL in the path
            if os.path.exists(os.path.join(root, image)):
                return
    if images:
        raise DataError(
            f"none of the first {len(images)} pictures of {path}, not even "
            f"{os.path.join(root, images[0])!r}",
            "picture paths that start from --image-root",
            f"pass --image-root with the folder that holds {images[0].split('/')[0]!r}",
        )


def read_unit(unit: Unit) -> Iterator[InputPair | Loss]:
    """The pictures of a unit in their order, each once. Pictures are not decoded here."""
    if unit.kind == "webdataset":
        return read_tar(unit.path)
    if unit.kind == "tfds":
        return _read_tfds(unit)
    return read_list(unit)


def open_tfds(entry: str, captions: str):
    """The TFDS source of an entry. Raises DataError as it does."""
    from nas_jax.data.tfds_source import TfdsSource  # here: few need it

    return TfdsSource(entry, clean=False, captions_field=captions)


def _read_tfds(unit: Unit) -> Iterator[InputPair | Loss]:
    from nas_jax.data.tfds_source import NoCaption

    source = open_tfds(unit.path, *unit.columns or ("",))
    for index in range(unit.start, unit.end):
        try:
            record = source[index]
        except NoCaption:
            yield Loss("no caption", printable(source.key(index)), unit.path)
            continue
        except OSError as error:
            yield Loss("unreadable file", f"record {index}", unit.path, str(error))
            continue
        captions, mended = mended_captions(record.captions)
        if captions:
            image = record.image if isinstance(record.image, bytes) else _as_png(record.image)
            yield InputPair(
                printable(record.key), image, captions, len(record.captions), mended, unit.path
            )
        else:
            yield Loss("no caption", printable(record.key), unit.path, "", len(record.captions))


def _as_png(image_HxWx3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HxWx3).save(buffer, "PNG")
    return buffer.getvalue()

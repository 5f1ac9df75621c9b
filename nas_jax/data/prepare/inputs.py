"""What can be prepared, cut into units of work and read picture by picture.

A unit is a tar, some thousand neighbouring entries of a list, or some row groups of a parquet file;
which ones follows from the inputs alone. Lists of entries are streamed: a unit holds the bytes
where it begins and ends. `forms` says which forms there are and tells them apart.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nas_jax.data.list_fields import (
    CAPTION_FIELDS,
    IMAGE_FIELDS,
    captions_of,
    image_of,
    url_advice,
)
from nas_jax.data.picture_paths import TRIED, check_some_exist
from nas_jax.data.prepare.forms import list_inputs
from nas_jax.data.prepare.items import InputPair, Loss, Unit, mended_captions, printable
from nas_jax.data.prepare.json_streams import stream_array, stream_lines
from nas_jax.data.prepare.lists import read_list
from nas_jax.data.prepare.pair_folders import (
    groups_in,
    pictures_in,
    read_groups,
    read_pair_folder,
)
from nas_jax.data.prepare.parquet import plan_parquet, read_parquet
from nas_jax.data.prepare.remote import fetched, is_remote, stat_remote
from nas_jax.data.prepare.streams import is_packed, unpacked
from nas_jax.data.prepare.tables import columns_of, delimiter_of, stream_table
from nas_jax.data.prepare.tars import read_tar
from nas_jax.data.prepare.whole_json import read_dict
from nas_jax.utils.errors import ConfigError, DataError

__all__ = ["UNIT_ENTRIES", "list_inputs", "open_tfds", "plan", "read_unit", "stat_inputs"]

UNIT_ENTRIES = 5000  # entries of a list in one unit


def stat_inputs(listed: Sequence[tuple[str, str]]) -> list[list]:
    """What changes when a file does."""
    rows = []
    for kind, path in listed:
        if is_remote(path):
            rows.append([kind, path, *stat_remote(path)])
            continue
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
    strip: str = "",
) -> Iterator[Unit]:
    """The units of the listed inputs, in order.

    Args:
      listed: what `list_inputs` returned.
      image_root: the folder or zip that the picture paths of lists start from; "" is the folder of
      the list.
      splits: Karpathy: which splits to take.
      tfds_captions: tfds: the text feature with the captions, where the data set leaves that open.
      size: entries of a list in one unit.
      strip: taken off the front of the picture paths of lists.

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
        if is_remote(path):
            yield from _plan_remote(kind, path, image_root, strip)
            continue
        stat = os.stat(path)
        base: dict[str, Any] = {"path": path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        root = image_root or os.path.dirname(path) or "."
        if kind == "webdataset":
            yield Unit(kind, **base)
        elif kind in ("files", "groups"):
            count = len(pictures_in(path) if kind == "files" else groups_in(path))
            for start in range(0, count, size):
                end = min(count, start + size)
                yield Unit(kind, **base, start=start, end=end, count=end - start)
        elif kind == "parquet":
            yield from plan_parquet(base, root, strip, size)
        elif kind == "coco":
            kind, entries = read_dict(path, splits)
            used_splits = used_splits or kind == "karpathy"
            check_some_exist(path, root, strip, (image for image, *_ in entries if image))
            for start in range(0, len(entries), size):
                part = entries[start : start + size]
                yield Unit(
                    kind,
                    **base,
                    start=start,
                    end=start + len(part),
                    count=len(part),
                    root=root,
                    strip=strip,
                    entries=part,
                )
        else:
            yield from _plan_list(kind, base, root, strip, size)
    if splits and not used_splits:
        raise ConfigError(
            f"--split {','.join(splits)} without a Karpathy file",
            "a json with images[].split",
            "leave --split out",
        )


def _plan_remote(kind: str, path: str, root: str, strip: str) -> Iterator[Unit]:
    """One unit: it is fetched once."""
    size, changed = stat_remote(path)
    base: dict[str, Any] = {"path": path, "size": size, "mtime_ns": changed}
    if kind == "webdataset":
        yield Unit(kind, **base)
    else:
        yield from plan_parquet(base, root, strip, sys.maxsize)


def _plan_list(kind: str, base: dict[str, Any], root: str, strip: str, size: int) -> Iterator[Unit]:
    """Units of a list: cut after `size` entries or more, never between captions of one picture."""
    path = base["path"]
    same: dict[str, Any] = {"root": root, "strip": strip}
    if kind in ("tsv", "csv", "token"):
        delimiter = delimiter_of(path, os.path.splitext(path)[1].lower())
        same |= {"delimiter": delimiter, "columns": columns_of(path, delimiter)}
        stream = partial(stream_table, path, delimiter, same["columns"])
    else:
        stream = partial(stream_array if kind == "albef" else stream_lines, path)
    _check_fields(path, [entry for _, _, entry in islice(stream(), TRIED)])
    images = (image_of(entry) for _, _, entry in stream())
    check_some_exist(path, root, strip, (image for image in images if image))
    start = end = count = 0
    last = None
    for begin, stop, entry in stream():
        image = image_of(entry)
        if not count or (count >= size and image != last):
            if count:
                yield Unit(kind, **base, start=start, end=end, count=count, **same)
            start, count = begin, 0
        end, last, count = stop, image, count + 1
    yield Unit(kind, **base, start=start, end=end, count=count, **same)


def _check_fields(path: str, entries: Sequence[Any]) -> None:
    """A few entries that lack something are losses; where all of the first do, the form is
    another.
    """
    if not entries:
        raise DataError(
            f"{path} without an entry", "a list of pictures and captions", "check the file"
        )
    if any(image_of(entry) and captions_of(entry) is not None for entry in entries):
        return
    entry = next((entry for entry in entries if isinstance(entry, dict)), entries[0])
    has = ", ".join(map(repr, entry)) if isinstance(entry, dict) else type(entry).__name__
    raise DataError(
        f"{path}, first entry, with {has or 'no field'}",
        f"a picture ({' | '.join(IMAGE_FIELDS)}) and captions ({' | '.join(CAPTION_FIELDS)})",
        (url_advice(entry, path) if isinstance(entry, dict) else "") or "rename the fields",
    )


def read_unit(unit: Unit, scratch: str | os.PathLike = "") -> Iterator[InputPair | Loss]:
    """The pictures of a unit in their order, each once. Pictures are not decoded here.

    scratch: a folder in which a packed tar is unpacked for as long as it is read; default: that of
    the tar.
    """
    if is_remote(unit.path):
        return _read_remote(unit, scratch)
    if unit.kind == "webdataset":
        return _read_tar(unit.path, scratch) if is_packed(unit.path) else read_tar(unit.path)
    if unit.kind == "tfds":
        return _read_tfds(unit)
    if unit.kind == "files":
        return read_pair_folder(unit)
    if unit.kind == "groups":
        return read_groups(unit)
    if unit.kind == "parquet":
        return read_parquet(unit)
    return read_list(unit)


def _read_tar(path: str, scratch: str | os.PathLike) -> Iterator[InputPair | Loss]:
    with unpacked(path, scratch or Path(path).parent) as plain:
        yield from (_named(item, plain, path) for item in read_tar(plain))


def _read_remote(unit: Unit, scratch: str | os.PathLike) -> Iterator[InputPair | Loss]:
    with fetched(unit.path, scratch or ".") as copy:
        if unit.kind == "parquet":
            items = read_parquet(unit, copy)
        else:
            items = read_unit(replace(unit, path=copy), scratch)
        yield from (_named(item, copy, unit.path) for item in items)


def _named(item: InputPair | Loss, copy: str, path: str) -> InputPair | Loss:
    """What was read of a copy, as of the file itself."""
    if isinstance(item, Loss) and item.name == os.path.basename(copy):  # the whole file
        item = item._replace(name=os.path.basename(path))
    return item._replace(file=path)


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

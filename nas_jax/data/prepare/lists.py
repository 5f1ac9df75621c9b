"""The pictures of one unit of a list, whatever its form."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from nas_jax.data.annotations import NOTHING, Annotations, annotations_of
from nas_jax.data.list_fields import captions_of, image_of
from nas_jax.data.negative_fields import bytes_and_path, expressions_of
from nas_jax.data.picture_paths import Pictures
from nas_jax.data.prepare.items import (
    InputPair,
    Loss,
    Unit,
    mended_annotations,
    mended_captions,
    printable,
)
from nas_jax.data.prepare.json_streams import DECODER, parse_line
from nas_jax.data.prepare.streams import open_text, unpacking
from nas_jax.data.prepare.tables import stream_table
from nas_jax.data.prepare.whole_json import Entry


def read_list(unit: Unit) -> Iterator[InputPair | Loss]:
    pictures = Pictures(unit.root, unit.strip)
    listed = unit.kind in ("coco", "karpathy", "entries")
    for item in unit.entries if listed else _merge_neighbours(_entries(unit)):
        if isinstance(item, Loss):
            yield item
            continue
        image, texts, annotations = Entry(*item)
        if not image:  # coco: captions of a picture that the file does not name
            yield Loss("no image", printable(texts[0]), unit.path, "", len(texts) - 1)
            continue
        if any(isinstance(one, int) for one in annotations.negative_images):
            annotations = _numbered(annotations, image, unit)
        yield read_picture(pictures, image, texts, unit.path, annotations)


def read_picture(
    pictures: Pictures,
    image: str,
    texts: Sequence[str],
    path: str,
    annotations: Annotations = NOTHING,
) -> InputPair | Loss:
    """The picture that the list `path` calls `image`, or why there is none."""
    name = printable(pictures.name(image))
    captions, mended = mended_captions(texts)
    if not captions:
        return Loss("no caption", name, path, "", len(texts))
    try:
        data = pictures.read(image)
    except FileNotFoundError:
        return Loss("missing file", name, path, "", len(texts))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return Loss("unreadable file", name, path, str(error), len(texts))
    found, lost = with_images(mended_annotations(annotations), pictures)
    return InputPair(name, data, captions, len(texts), mended, path, found, lost)


def with_images(annotations: Annotations, pictures: Pictures) -> tuple[Annotations, int]:
    """With the bytes of its pictures, and how many of them cannot be read."""
    if not annotations.negative_images:
        return annotations, 0
    images = []
    for one in annotations.negative_images:
        data, path = bytes_and_path(one)
        # what cannot be read is counted; ValueError: a NUL in the path
        with contextlib.suppress(OSError, ValueError):
            if data is not None:
                images.append(data)
            elif path:
                images.append(pictures.read(path))
    lost = len(annotations.negative_images) - len(images)
    return annotations._replace(negative_images=tuple(images)), lost


def _numbered(annotations: Annotations, image: str, unit: Unit) -> Annotations:
    """With the paths of the rows whose numbers stand in place of pictures, as in NegCLIP's tsv;
    without those that show the same picture. A number without a row stays, and is a loss.
    """
    paths = _paths_of_rows(unit.path, unit.delimiter, unit.columns) if unit.delimiter else ()
    found = [
        paths[one] if isinstance(one, int) and 0 <= one < len(paths) else one
        for one in annotations.negative_images
    ]
    others = tuple(one for one in dict.fromkeys(found) if one != image)
    return annotations._replace(negative_images=others)


@functools.lru_cache(1)
def _paths_of_rows(path: str, delimiter: str, columns: tuple[str, ...]) -> list[str]:
    """The picture of each row of a table, from the first row on."""
    return [image_of(row) or "" for _, _, row in stream_table(path, delimiter, columns)]


def _entries(unit: Unit) -> Iterator[Entry | Loss]:
    """(picture path, captions) of each entry of a unit of a list."""
    for number, value in enumerate(_values(unit), start=1):
        where = f"entry {number} from byte {unit.start}"
        if not isinstance(value, dict):
            yield Loss("damaged json", where, unit.path, "no object with fields")
            continue
        image, texts = image_of(value), captions_of(value) or []
        if image:
            yield Entry(image, texts + expressions_of(value), annotations_of(value, texts))
        else:
            yield Loss(
                "no image", where, unit.path, printable(texts[0][:80]) if texts else "", len(texts)
            )


def _values(unit: Unit) -> Iterator[Any]:
    if unit.delimiter:
        rows = stream_table(unit.path, unit.delimiter, unit.columns, unit.start, unit.end)
        yield from (row for _, _, row in rows)
        return
    with unpacking(unit.path), open_text(unit.path, unit.start) as file:
        data = file.read(unit.end - unit.start)
    if unit.kind == "albef":
        yield from DECODER.decode(f"[{data.decode('utf-8', 'surrogateescape')}]")
    else:
        yield from (parse_line(line) for line in data.split(b"\n") if line.strip())


def both(one: Annotations, other: Annotations) -> Annotations:
    """Those of two entries about one picture."""
    if other is NOTHING:
        return one
    new = (image for image in other.negative_images if image not in one.negative_images)
    return Annotations(
        one.negative_captions + other.negative_captions,
        (*one.negative_images, *new),
        one.group or other.group,
        one.regions + other.regions,
    )


def _merge_neighbours(items: Iterator[Entry | Loss]) -> Iterator[Entry | Loss]:
    """Entries that follow each other with the same picture as one, with the captions of all."""
    last: Entry | None = None
    for item in items:
        if last and not isinstance(item, Loss) and item.image == last.image:
            annotations = both(last.annotations, item.annotations)
            last = Entry(last.image, [*last.texts, *item.texts], annotations)
            continue
        if last:
            yield last
        last = None if isinstance(item, Loss) else item
        if isinstance(item, Loss):
            yield item
    if last:
        yield last

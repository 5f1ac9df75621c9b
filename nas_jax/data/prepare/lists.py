"""Lists of pictures: json lists, lines and tables as a stream, COCO's and Karpathy's json whole.

A stream gives each entry with the bytes where it begins and ends, so that a unit is a range of
bytes: of the plain text, where the file is packed or in UTF-16.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from nas_jax.data.annotations import NOTHING, Annotations, annotations_of
from nas_jax.data.list_fields import captions_of, image_of, texts_of
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
from nas_jax.data.prepare.streams import open_text, unpacking
from nas_jax.data.prepare.tables import stream_table
from nas_jax.data.regions import Found, regions_of
from nas_jax.utils.errors import ConfigError, DataError

DECODER = json.JSONDecoder(strict=False)  # control characters in a text are mended, not refused

_CHUNK = 1 << 20  # bytes read at once from a list
_MAX_ENTRY = 64 << 20  # bytes of one entry of a list; more is no list
_SPACE = re.compile(r"[\s,]*")


class Entry(NamedTuple):
    """What a list says of a picture, as it stands."""

    image: str  # the path
    texts: Sequence[str]
    annotations: Annotations = NOTHING  # pictures as paths, bytes or numbers of rows


# -------------------------------------------------------------------------------------- as a stream


def stream_array(path: str) -> Iterator[tuple[int, int, Any]]:
    """(first byte, byte after the last, value) of each entry of a json list, as a stream."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    with unpacking(path), open_text(path) as file:
        # offset: of `text[position]` in the file; number -1: before the bracket
        mark = file.read(3)
        offset = len(codecs.BOM_UTF8) if mark == codecs.BOM_UTF8 else 0
        text, position, number, ended = decode(mark[offset:]), 0, -1, False
        while True:
            stop = _SPACE.match(text, position).end()
            offset, position = offset + _bytes(text[position:stop]), stop
            if position < len(text) and number < 0:
                offset, position, number = offset + 1, position + 1, 0
                continue
            if position < len(text) and text[position] == "]":
                return
            stop = -1
            if position < len(text):
                with contextlib.suppress(ValueError, RecursionError):
                    value, stop = DECODER.raw_decode(text, position)
            # An entry at the end of the text may go on in the next chunk.
            if stop < 0 or (stop == len(text) and not ended):
                if ended or len(text) - position > _MAX_ENTRY:
                    raise DataError(
                        f"{path}: {'no end' if position >= len(text) else 'no json entry'} at "
                        f"byte {offset}, "
                        f"after {max(number, 0)} entries",
                        "a json list to its end",
                        "copy the file again; it may be cut short",
                    )
                chunk = file.read(_CHUNK)
                text, position, ended = text[position:] + decode(chunk, not chunk), 0, not chunk
                continue
            start, offset = offset, offset + _bytes(text[position:stop])
            yield start, offset, value
            position, number = stop, number + 1


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def stream_lines(path: str) -> Iterator[tuple[int, int, Any]]:
    """(first byte, byte after the last, value) of each line but empty ones; None as the value of
    what is no json.
    """
    with unpacking(path), open_text(path) as file:
        end = 0
        for line in file:
            start, end = end, end + len(line)
            if line.strip():
                yield start, end, _parse_line(line)


def _parse_line(line: bytes) -> Any:
    text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    try:
        return DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return None


def holds_lines(path: str) -> bool:
    """Whether a json file that begins with { holds an object a line, and not one object.

    Its first line is an object of its own that another follows, or one of a picture.
    """
    with unpacking(path), open_text(path) as file:
        line = file.readline(_CHUNK)
        first = _parse_line(line)
        if not isinstance(first, dict):
            return False
        return image_of(first) is not None or file.read(_CHUNK).lstrip()[:1] == b"{"


# -------------------------------------------------------------------------------------------- whole


def read_dict(path: str, splits: Sequence[str]) -> tuple[str, tuple[Entry, ...]]:
    """Kind and (picture path, captions) of COCO's or Karpathy's json, in the pictures' order; also
    of {picture: captions}, {name: {image, caption}} and {name: [{image, caption}, ...]}.
    """
    with unpacking(path), open_text(path) as file:
        data = file.read()
    try:
        content = json.loads(data.decode("utf-8-sig", "surrogateescape"), strict=False)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: {error}", "whole json", "copy the file again; it may be cut short"
        ) from error
    images = content.get("images")
    try:
        if isinstance(content.get("annotations"), list) and isinstance(images, list):
            return "coco", _coco_entries(path, images, content["annotations"])
        if isinstance(images, list) and images and "sentences" in images[0]:
            return "karpathy", _karpathy_entries(path, images, splits)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} with an entry that lacks {error}",
            "the fields of COCO's or Karpathy's json",
            "check the file",
        ) from error
    if entries := _plain_entries(content):
        return "entries", entries
    raise DataError(
        f"{path} with the fields {', '.join(content)[:80]}",
        "images and annotations (COCO), or images with sentences (Karpathy)",
        "convert it to a list of {image, caption}",
    )


def _plain_entries(content: dict[str, Any]) -> tuple[Entry, ...]:
    """The entries of an object whose values are captions or entries, () where they are not."""
    values: Sequence[Any] = list(content.values())
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    elif all(texts_of(value) for value in values):
        return tuple((name, tuple(texts_of(value))) for name, value in content.items())
    found = [(image_of(value), captions_of(value)) for value in values]
    if not all(image and texts is not None for image, texts in found):
        return ()
    return tuple(
        Entry(image, (*texts, *expressions_of(value)), annotations_of(value, texts))
        for value, (image, texts) in zip(values, found, strict=True)
    )


def _coco_entries(path: str, images: list, annotations: list) -> tuple[Entry, ...]:
    captions: dict[Any, list[str]] = {image["id"]: [] for image in images}
    regions: dict[Any, list[Found]] = {}
    lost: dict[str, list[str]] = {}
    for annotation in annotations:
        if "caption" not in annotation:
            raise DataError(
                f"{path} with annotations of {', '.join(annotation)[:60]}",
                "captions",
                "take the captions_*.json of COCO, not the instances",
            )
        if annotation["image_id"] in captions:
            captions[annotation["image_id"]].append(annotation["caption"])
            found = regions_of(annotation, [annotation["caption"]])
            regions.setdefault(annotation["image_id"], []).extend(found)
        else:
            lost.setdefault(f"image_id {annotation['image_id']}", []).append(annotation["caption"])
    named = [
        Entry(
            image["file_name"],
            tuple(captions[image["id"]]),
            Annotations(regions=tuple(regions.get(image["id"], ()))),
        )
        for image in images
    ]
    # An empty path stands for captions of a picture that the file does not name.
    return (*named, *(("", (name, *texts)) for name, texts in lost.items()))


def _karpathy_entries(path: str, images: list, splits: Sequence[str]) -> tuple[Entry, ...]:
    has = sorted({image["split"] for image in images})
    if not splits or set(splits) - set(has):
        raise ConfigError(
            f"--split {','.join(splits)!r} for {path}",
            f"some of {','.join(has)}",
            "pass --split train,restval to train on COCO; for --against prepare the file first",
        )
    return tuple(
        (
            os.path.join(image.get("filepath", ""), image["filename"]),
            tuple(sentence["raw"] for sentence in image["sentences"]),
        )
        for image in images
        if image["split"] in splits
    )


# ----------------------------------------------------------------------------------------- one unit


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
    annotations = with_images(mended_annotations(annotations), pictures)
    return InputPair(name, data, captions, len(texts), mended, path, *annotations)


def with_images(annotations: Annotations, pictures: Pictures) -> tuple[Annotations, int]:
    """With the bytes of its pictures, and how many of them cannot be read."""
    if not annotations.negative_images:
        return annotations, 0
    images = []
    for one in annotations.negative_images:
        data, path = bytes_and_path(one)
        # what cannot be read is counted; ValueError: a NUL in the path
        with contextlib.suppress(OSError, ValueError):
            if data is not None or path:
                images.append(pictures.read(path) if data is None else data)
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
        yield from (_parse_line(line) for line in data.split(b"\n") if line.strip())


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

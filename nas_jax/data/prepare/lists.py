"""Lists of pictures: json lists and lines as a stream, COCO's and Karpathy's json whole.

A stream gives each entry with the bytes where it begins and ends, so that a unit is a range of
bytes.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nas_jax.data.prepare.items import InputPair, Loss, Unit, mended_captions, printable
from nas_jax.utils.errors import ConfigError, DataError

IMAGE_FIELDS = ("image", "file_name", "filename", "filepath", "path")
CAPTION_FIELDS = ("caption", "text", "captions")
DECODER = json.JSONDecoder(strict=False)  # control characters in a text are mended, not refused

_CHUNK = 1 << 20  # bytes read at once from a list
_MAX_ENTRY = 64 << 20  # bytes of one entry of a list; more is no list
_SPACE = re.compile(r"[\s,]*")

Entry = tuple[str, Sequence[str]]
"""Path of a picture, and its captions as they stand."""


# -------------------------------------------------------------------------------------- as a stream


def stream_array(path: str) -> Iterator[tuple[int, int, Any]]:
    """(first byte, byte after the last, value) of each entry of a json list, as a stream."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    with open(path, "rb") as file:
        # of `text[position]` in the file
        offset = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
        file.seek(offset)
        text, position, number, ended = "", 0, -1, False  # number -1: before the bracket
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


def columns_of(path: str) -> tuple[str, ...]:
    with open(path, "rb") as file:
        header = file.readline().removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    columns = tuple(name.strip().lower() for name in header.rstrip("\r\n").split("\t"))
    if not (set(columns) & set(IMAGE_FIELDS) and set(columns) & set(CAPTION_FIELDS)):
        raise DataError(
            f"{path} with the header {' | '.join(columns)[:80]!r}",
            f"tab-separated columns, one of {' | '.join(IMAGE_FIELDS)} and one of "
            f"{' | '.join(CAPTION_FIELDS)}",
            "write a header line with these names",
        )
    return columns


def stream_lines(path: str, columns: tuple[str, ...]) -> Iterator[tuple[int, int, Any]]:
    """(first byte, byte after the last, value) of each line but empty ones; None as the value of
    what is no json.
    """
    with open(path, "rb") as file:
        end = len(file.readline()) if columns else 0
        for line in file:
            start, end = end, end + len(line)
            if line.strip():
                yield start, end, _parse_line(line, columns)


def _parse_line(line: bytes, columns: tuple[str, ...]) -> Any:
    text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    if columns:
        return dict(zip(columns, text.rstrip("\r\n").split("\t"), strict=False))
    try:
        return DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return None


def image_of(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return None
    return next(
        (entry[name] for name in IMAGE_FIELDS if isinstance(entry.get(name), str) and entry[name]),
        None,
    )


def captions_of(entry: Any) -> list[str] | None:
    """All captions of an entry, None where it has no such field."""
    found = next((entry[name] for name in CAPTION_FIELDS if entry.get(name) is not None), None)
    if not isinstance(found, str | list):
        return None
    return [
        text for text in ([found] if isinstance(found, str) else found) if isinstance(text, str)
    ]


# -------------------------------------------------------------------------------------------- whole


def read_dict(path: str, splits: Sequence[str]) -> tuple[str, tuple[Entry, ...]]:
    """Kind and (picture path, captions) of COCO's or Karpathy's json, in the pictures' order."""
    try:
        content = json.loads(
            Path(path).read_bytes().decode("utf-8-sig", "surrogateescape"), strict=False
        )
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
    raise DataError(
        f"{path} with the fields {', '.join(content)[:80]}",
        "images and annotations (COCO), or images with sentences (Karpathy)",
        "convert it to a list of {image, caption}",
    )


def _coco_entries(path: str, images: list, annotations: list) -> tuple[Entry, ...]:
    captions: dict[Any, list[str]] = {image["id"]: [] for image in images}
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
        else:
            lost.setdefault(f"image_id {annotation['image_id']}", []).append(annotation["caption"])
    named = [(image["file_name"], tuple(captions[image["id"]])) for image in images]
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
    listed = unit.kind in ("coco", "karpathy")
    for item in unit.entries if listed else _merge_neighbours(_entries(unit)):
        if isinstance(item, Loss):
            yield item
            continue
        image, texts = item
        if not image:  # coco: captions of a picture that the file does not name
            yield Loss("no image", printable(texts[0]), unit.path, "", len(texts) - 1)
            continue
        captions, mended = mended_captions(texts)
        if not captions:
            yield Loss("no caption", printable(image), unit.path, "", len(texts))
            continue
        try:
            data = Path(unit.root, image).read_bytes()
        except FileNotFoundError:
            yield Loss("missing file", printable(image), unit.path, "", len(texts))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            yield Loss("unreadable file", printable(image), unit.path, str(error), len(texts))
        else:
            yield InputPair(printable(image), data, captions, len(texts), mended, unit.path)


def _entries(unit: Unit) -> Iterator[Entry | Loss]:
    """(picture path, captions) of each entry of a unit of a list."""
    with open(unit.path, "rb") as file:
        file.seek(unit.start)
        data = file.read(unit.end - unit.start)
    if unit.kind == "albef":
        values = DECODER.decode(f"[{data.decode('utf-8', 'surrogateescape')}]")
    else:
        values = [_parse_line(line, unit.columns) for line in data.split(b"\n") if line.strip()]
    for number, value in enumerate(values, start=1):
        where = f"entry {number} from byte {unit.start}"
        if not isinstance(value, dict):
            yield Loss("damaged json", where, unit.path, "no object with fields")
            continue
        image, texts = image_of(value), captions_of(value) or []
        if image:
            yield image, texts
        else:
            yield Loss(
                "no image", where, unit.path, printable(texts[0][:80]) if texts else "", len(texts)
            )


def _merge_neighbours(items: Iterator[Entry | Loss]) -> Iterator[Entry | Loss]:
    """Entries that follow each other with the same picture as one, with the captions of all."""
    last: tuple[str, list[str]] | None = None
    for item in items:
        if last and not isinstance(item, Loss) and item[0] == last[0]:
            last[1].extend(item[1])
            continue
        if last:
            yield last
        last = None if isinstance(item, Loss) else item
        if isinstance(item, Loss):
            yield item
    if last:
        yield last

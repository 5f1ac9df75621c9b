"""Boxes and phrases of parts of a picture, as data sets have them.

    boxes, bboxes, bbox, box, bb
                                [x, y, width, height] or a list of these, in pixels of the picture
                                from its upper left corner, as in COCO
    phrases, phrase             a text, or one for each box; without boxes, what is in the picture
    regions, objects, elems     [{bbox or x, y, width, height; phrase}], or {bbox: [...], phrase:
                                [...]} as Hugging Face data sets have them
    bbox_info                   FineHARD: boxes by two corners, in shares of the picture

No method trains on boxes. A record keeps them; what a crop makes of them is not computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nas_jax.data.list_fields import listed
from nas_jax.data.records import Box, Region

BOX_FIELDS = ("boxes", "bboxes", "bbox", "box", "bb")
PHRASE_FIELDS = ("phrases", "phrase")
REGION_FIELDS = ("regions", "objects", "elems")
CORNER_FIELD = "bbox_info"

_SIDES = ("x", "y", "width", "height")  # of a region of Visual Genome
_TEXTS = (*PHRASE_FIELDS, "caption", "text", "label", "labels", "category", "categories", "name")
_SLACK = 1.0  # pixels that a box may stick out by, as rounding makes them; these are cut off


class Found(NamedTuple):
    """A region as a data set has it."""

    box: Any  # None: it has none
    phrase: str = ""
    corners: bool = False  # the box is left, top, right, bottom in shares of the picture
    wrong: str = ""  # why there is no region


def is_region_field(name: str) -> bool:
    """Whether `regions_of` reads a field of that name."""
    return name in (*BOX_FIELDS, *PHRASE_FIELDS, *REGION_FIELDS, CORNER_FIELD)


def regions_of(entry: Mapping[str, Any], captions: Sequence[str] | None = None) -> list[Found]:
    """The regions of an entry, unchecked.

    captions: of the entry; the only one of an entry with one box and no phrase is that box's.
    """
    found = list(_paired(_first(entry, BOX_FIELDS), _first(entry, PHRASE_FIELDS)))
    if len(found) == 1 and not found[0].phrase and captions and len(captions) == 1:
        found = [found[0]._replace(phrase=captions[0])]
    for name in REGION_FIELDS:
        value = listed(entry.get(name))
        for region in value if isinstance(value, list | tuple) else [value]:
            if isinstance(region, Mapping):
                found += _region(region)
    corners = entry.get(CORNER_FIELD)
    for region in corners if isinstance(corners, list | tuple) else ():
        if isinstance(region, Mapping) and region.get("bbox") is not None:
            text = region.get("short_expr")
            found.append(Found(region["bbox"], text if isinstance(text, str) else "", True))
    return found


def _first(entry: Mapping[str, Any], names: Sequence[str]) -> Any:
    given = (entry.get(name) for name in names)
    return listed(next((value for value in given if value is not None and value != ""), None))


def _region(region: Mapping[str, Any]) -> Iterator[Found]:
    box = _first(region, BOX_FIELDS)
    if box is None and all(side in region for side in _SIDES):
        box = [region[side] for side in _SIDES]
    yield from _paired(box, _first(region, _TEXTS))


def _paired(boxes: Any, phrases: Any) -> Iterator[Found]:
    """One box or several, each with its phrase; a phrase without a box; several boxes of one."""
    many = isinstance(boxes, list | tuple) and all(isinstance(one, list | tuple) for one in boxes)
    places = list(boxes) if many else [] if boxes is None else [boxes]
    texts = list(phrases) if isinstance(phrases, list | tuple) else [phrases]
    texts = [text if isinstance(text, str) else "" for text in texts]
    if not places:
        yield from (Found(None, text) for text in texts if text.strip())
    elif len(texts) == 1:
        yield from (Found(place, texts[0]) for place in places)
    elif len(texts) == len(places):
        yield from map(Found, places, texts)
    else:
        yield Found(None, wrong=f"{len(places)} boxes for {len(texts)} phrases")


def read_regions(rows: Iterable[Sequence[Any]]) -> tuple[Region, ...]:
    """Regions that were written as lists."""
    return tuple(Region(box and tuple(box), phrase) for box, phrase in rows)


# ------------------------------------------------------------------------------------------ checked


def as_box(value: Any) -> Box:
    """Four numbers x, y, width, height. Raises ValueError, in words, for anything else."""
    usable = isinstance(value, list | tuple) and len(value) == 4
    if not usable or not all(type(one) in (int, float) and math.isfinite(one) for one in value):
        raise ValueError(f"no box [x, y, width, height]: {value!r:.60}")
    if value[2] <= 0 or value[3] <= 0:
        raise ValueError(f"a box without area: {list(value)}")
    x, y, width, height = map(float, value)
    return x, y, width, height


def placed(found: Sequence[Found], size: tuple[int, int] | None) -> tuple[list[Region], list[str]]:
    """The usable regions of a picture, and of each other one what is wrong with it.

    size: width and height of the picture; None where it is not known, so that a box is not
    compared with it.
    """
    regions: list[Region] = []
    wrong: list[str] = []
    for one in found:
        try:
            regions.append(Region(_box_of(one, size), one.phrase.strip()))
        except ValueError as error:
            wrong.append(str(error))
    return list(dict.fromkeys(regions)), wrong


def _box_of(found: Found, size: tuple[int, int] | None) -> Box | None:
    if found.wrong:
        raise ValueError(found.wrong)
    if found.box is None:
        return None
    if found.corners:
        return _of_corners(found.box, size)
    x, y, width, height = box = as_box(found.box)
    if size is None:
        return box
    right, bottom = x + width, y + height
    over = max(-x, -y, right - size[0], bottom - size[1])
    x, y, right, bottom = max(x, 0.0), max(y, 0.0), min(right, size[0]), min(bottom, size[1])
    if over > _SLACK or right <= x or bottom <= y:
        raise ValueError(f"a box outside the picture of {size[0]}x{size[1]}: {found.box!r:.60}")
    return (x, y, right - x, bottom - y) if over > 0 else box


def _of_corners(value: Any, size: tuple[int, int] | None) -> Box:
    if size is None:
        raise ValueError("a box in shares of the picture, which prepare turns into pixels")
    usable = isinstance(value, list | tuple) and len(value) >= 4  # FineHARD has a fifth number
    if not usable or not all(type(one) in (int, float) for one in value[:4]):
        raise ValueError(f"no box [left, top, right, bottom]: {value!r:.60}")
    left, top, right, bottom = value[:4]
    if not (-0.01 <= left < right <= 1.01 and -0.01 <= top < bottom <= 1.01):
        raise ValueError(f"no shares of a picture [left, top, right, bottom]: {value!r:.60}")
    left, top, right, bottom = (min(1.0, max(0.0, one)) for one in value[:4])
    width, height = size
    return left * width, top * height, (right - left) * width, (bottom - top) * height


def scaled(regions: Sequence[Region], size: tuple[int, int], new: tuple[int, int]) -> list[Region]:
    """The regions of a picture that was shrunk from `size` to `new` (width, height)."""
    if size == new:
        return list(regions)
    across, down = new[0] / size[0], new[1] / size[1]
    return [
        one if one.box is None else one._replace(box=_times(one.box, across, down))
        for one in regions
    ]


def _times(box: Box, across: float, down: float) -> Box:
    x, y, width, height = box
    return x * across, y * down, width * across, height * down

"""What data sets say of a picture beside its captions, and the one reader of KEY.json with what
lies beside it: for tars in training and in prepare, and for folders of the same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from nas_jax.data.negative_fields import (
    expressions_of,
    group_of,
    is_negative_field,
    negative_images_of,
    negatives_of,
)
from nas_jax.data.records import NegativeCaption
from nas_jax.data.regions import Found, is_region_field, regions_of
from nas_jax.data.tar_names import CAPTION_SUFFIXES, negatives_in

T = TypeVar("T")


class Annotations(NamedTuple):
    """What there is beside the captions of a picture."""

    negative_captions: tuple[NegativeCaption, ...] = ()
    negative_images: tuple[Any, ...] = ()  # bytes, or where they are: paths, or places in a tar
    group: str = ""
    regions: tuple[Found, ...] = ()  # as the data have them, until they are `placed`


NOTHING = Annotations()


def is_annotation(name: str) -> bool:
    """Whether `annotations_of` reads a field of that name."""
    return is_negative_field(name) or is_region_field(name)


def annotations_of(entry: Mapping[str, Any], captions: Sequence[str] | None) -> Annotations:
    """Those in an entry of a list or a row of a table."""
    images, regions = negative_images_of(entry), regions_of(entry, captions)
    negatives = negatives_of(entry, captions)
    return _or_nothing(Annotations(negatives, tuple(images), group_of(entry), tuple(regions)))


def _or_nothing(found: Annotations) -> Annotations:
    return found if any(found) else NOTHING


# -------------------------------------------------------------------- samples of files with one key


class SampleTexts(NamedTuple):
    """The texts of a sample."""

    captions: list[str]  # all, `caption` of the json first, expressions of regions last
    damaged: bool  # its json cannot be read
    annotations: Annotations


def read_sample(
    parts: Mapping[str, T], read: Callable[[T], bytes], errors: str = "surrogateescape"
) -> SampleTexts:
    """The captions of KEY.json, else of KEY.txt, and the annotations in the json and beside it.

    Args:
      parts: suffix -> file or member of a sample (`tar_names`).
      read: its bytes.
      errors: what becomes of bytes that are no UTF-8 (of `bytes.decode`).
    """
    fields: Mapping[str, Any] = {}
    damaged = False
    if "json" in parts:
        try:
            fields = _object(read(parts["json"]), errors)
        except (ValueError, TypeError, RecursionError):
            damaged = True
    captions = _captions_in(fields)
    text = next((parts[suffix] for suffix in CAPTION_SUFFIXES if suffix in parts), None)
    if text is not None and not captions:
        captions = [_text(read(text), errors)]
    own, captions = captions, captions + expressions_of(fields)
    texts, images = negatives_in(parts)
    beside = [_text(read(place), errors) for place in texts]
    negatives = negatives_of(fields, own, beside)
    regions = tuple(regions_of(fields, own))
    found = Annotations(negatives, tuple(images), group_of(fields), regions)
    return SampleTexts(captions, damaged, _or_nothing(found))


def _object(data: bytes, errors: str) -> Mapping[str, Any]:
    """Raises ValueError where this is no json, TypeError where it is no object."""
    # json.loads tells UTF-16 by its NULs; control characters in a text are mended later
    wide = b"\0" in data[:4]
    value = json.loads(data if wide else _text(data, errors), strict=False)
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__}, and no object")
    return value


def _text(data: bytes, errors: str) -> str:
    return data.decode("utf-8-sig", errors)


def _captions_in(fields: Mapping[str, Any]) -> list[str]:
    more = fields.get("captions") or []
    found = [fields.get("caption"), *(more if isinstance(more, list) else [more])]
    return list(dict.fromkeys(text for text in found if isinstance(text, str)))

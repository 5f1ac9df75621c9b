"""Under which names data sets have negative captions, negative pictures and groups.

    negative_caption        a text, a list of texts, a list for each caption, {kind: text or list}
                            or [{caption, kind}]; in a csv or tsv also such a list as a text
    relation_aug_caption    a column for each kind, as CE-CLIP writes them (`###`: there is none)
    bbox_info               FineHARD: short expressions of regions, each with its negatives
    negative_image          a path or a list of them; in parquet also bytes; in NegCLIP's tsv the
                            numbers of other rows
    group                   what the variations of one picture have in common

In tars the same stand in KEY.json, or as members KEY.neg_caption and KEY.neg_image (TripletCLIP;
`tar_names.negatives_in`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nas_jax.data.list_fields import listed
from nas_jax.data.records import NegativeCaption

NEGATIVE_FIELDS = (
    "negative_caption",
    "negative_captions",
    "neg_caption",
    "neg_captions",
    "hard_negative",
    "hard_negatives",
)
NEGATIVE_IMAGE_FIELDS = ("negative_image", "negative_images", "neg_image", "neg_images")
GROUP_FIELDS = ("group", "group_id", "source_id")

_OF_KIND = re.compile(r"(\w+)_aug_caption")
_NONE = ("", "###")  # CE-CLIP's word for a kind that could not be made
_TEXT, _KIND = ("caption", "text"), ("kind", "type", "category")  # of an object for a negative


class Files(Sequence[bytes]):
    """Files that are read when they are asked for."""

    def __init__(self, read: Callable[[Any], bytes], places: Sequence[Any]):
        self._read, self._places = read, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        return self._read(self._places[index])


@functools.lru_cache(1000)
def _kind_of(name: str) -> str | None:
    """The kind that the negative captions of a field have, None where it has none."""
    if name in NEGATIVE_FIELDS:
        return ""
    found = _OF_KIND.fullmatch(name)
    return found and found[1]


def is_negative_field(name: str) -> bool:
    """Whether `negatives_of`, `negative_images_of` or `group_of` reads a field of that name."""
    return name in (*NEGATIVE_IMAGE_FIELDS, *GROUP_FIELDS) or _kind_of(name) is not None


def negatives_of(
    entry: Mapping[str, Any], captions: Sequence[str] | None, beside: Sequence[str] = ()
) -> tuple[NegativeCaption, ...]:
    """The negative captions of an entry, and of texts beside it, each with the caption it was made
    from where that is said: by a list for each caption, or by there being one caption alone.
    """
    captions = captions or ()
    only = captions[0] if len(captions) == 1 else ""
    found = list(_texts(list(beside), "", only))
    for name, value in entry.items():
        if (kind := _kind_of(name)) is not None:
            value = listed(value)
            lists = isinstance(value, list | tuple) and any(isinstance(v, list) for v in value)
            if lists and len(value) == len(captions):
                for one, caption in zip(value, captions, strict=True):
                    found += _texts(one, kind, caption)
            else:
                found += _texts(value, kind, only)
    for expression, negatives in _regions(entry):
        found += _texts(negatives, "", expression)
    return tuple(dict.fromkeys(found))


def expressions_of(entry: Any) -> list[str]:
    """The short expressions of regions that have negatives (FineHARD): captions too, as each of
    those negatives was made from one.
    """
    return [expression for expression, _ in _regions(entry)] if isinstance(entry, dict) else []


def _regions(entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    regions = entry.get("bbox_info")
    for region in regions if isinstance(regions, list) else ():
        region = region if isinstance(region, dict) else {}
        flagged = region.get("flag_short_neg", 1) and region.get("short_expr_negs")
        if flagged and isinstance(region.get("short_expr"), str):
            yield region["short_expr"], list(_leaves(region["short_expr_negs"]))


def _leaves(value: Any) -> Iterator[str]:
    """All texts in a nest of lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)


def _texts(value: Any, kind: str, of: str) -> Iterator[NegativeCaption]:
    if isinstance(value, str):
        if value.strip() not in _NONE:
            yield NegativeCaption(value, kind, of)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part, kind, of)
    elif isinstance(value, dict):
        text = next((value[name] for name in _TEXT if isinstance(value.get(name), str)), None)
        if text is None:  # {kind: text or list}
            for name, part in value.items():
                yield from _texts(part, kind or str(name).lower(), of)
        else:
            named = next((value[name] for name in _KIND if isinstance(value.get(name), str)), kind)
            yield from _texts(text, named.lower(), of)


def negative_images_of(entry: Mapping[str, Any]) -> list[Any]:
    """The negative pictures of an entry as they stand: paths, bytes, {bytes, path}, or numbers of
    rows of the same table.
    """
    found: list[Any] = []
    for name in NEGATIVE_IMAGE_FIELDS:
        value = listed(entry.get(name))
        found += value if isinstance(value, list | tuple) else [value]
    return [one for one in found if one is not None and one != ""]


def bytes_and_path(value: Any) -> tuple[bytes | None, str | None]:
    """Those of a picture as a table has it: {bytes, path}, bytes or a path."""
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
    else:
        data, path = (value, None) if isinstance(value, bytes) else (None, value)
    return data, path if isinstance(path, str) and path else None


def group_of(entry: Mapping[str, Any]) -> str:
    """The name of an entry's group, "" where it has none."""
    found = (entry[name] for name in GROUP_FIELDS if entry.get(name) not in (None, ""))
    return str(next(found, ""))

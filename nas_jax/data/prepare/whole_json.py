"""Json files that are read whole: COCO's captions, Karpathy's, and plain objects."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from nas_jax.data.annotations import NOTHING, Annotations, annotations_of
from nas_jax.data.list_fields import captions_of, image_of, texts_of
from nas_jax.data.negative_fields import expressions_of
from nas_jax.data.prepare.streams import open_text, unpacking
from nas_jax.data.regions import Found, regions_of
from nas_jax.utils.errors import ConfigError, DataError


class Entry(NamedTuple):
    """What a list says of a picture, as it stands."""

    image: str  # the path
    texts: Sequence[str]
    annotations: Annotations = NOTHING  # pictures as paths, bytes or numbers of rows


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
    elif all(captions := [texts_of(value) or [] for value in values]):
        return tuple(Entry(name, tuple(of)) for name, of in zip(content, captions, strict=True))
    entries = []
    for value in values:
        image, texts = image_of(value), captions_of(value)
        if not image or texts is None:
            return ()
        entries.append(Entry(image, (*texts, *expressions_of(value)), annotations_of(value, texts)))
    return tuple(entries)


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
    return (*named, *(Entry("", (name, *texts)) for name, texts in lost.items()))


def _karpathy_entries(path: str, images: list, splits: Sequence[str]) -> tuple[Entry, ...]:
    has = sorted({image["split"] for image in images})
    if not splits or set(splits) - set(has):
        raise ConfigError(
            f"--split {','.join(splits)!r} for {path}",
            f"some of {','.join(has)}",
            "pass --split train,restval to train on COCO; for --against prepare the file first",
        )
    return tuple(
        Entry(
            os.path.join(image.get("filepath", ""), image["filename"]),
            tuple(sentence["raw"] for sentence in image["sentences"]),
        )
        for image in images
        if image["split"] in splits
    )

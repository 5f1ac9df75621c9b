"""Which members of a tar are one sample, as WebDataset has it, and names with further dots.

A member `FOLDER/NAME.SUFFIX` is split at the first dot of its base name: the key is FOLDER/NAME, so
that equal names in two folders of a tar are two samples. Names with dots of their own come out
wrong that way (`scan v1.2.jpg` has the suffix `2.jpg`); where splitting at the last dot gives a
picture with a text, that is the sample.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TypeVar

IMAGE_SUFFIXES = (
    "png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "jfif", "image",
)  # fmt: skip
CAPTION_SUFFIXES = ("txt", "caption")
TEXT_SUFFIXES = ("json", *CAPTION_SUFFIXES)
# neg_caption, neg_image (TripletCLIP), neg.jpg, negative_1.txt ...
_NEGATIVE = re.compile(r"neg(?:ative)?s?(?:_(caption|text|image)s?)?(?:[_-]?\d+)?(?:\.(\w+))?")

T = TypeVar("T")
Samples = dict[str, dict[str, T]]
"""Key -> suffix in lower case -> member."""


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of the path of a member; the suffix keeps its case.

    >>> split_name("./cats/0000.neg.jpg")
    ('cats/0000', 'neg.jpg')
    """
    folder, base = os.path.split(name)
    stem, _, suffix = base.partition(".")
    while folder.startswith("./"):
        folder = folder[2:].lstrip("/")
    return os.path.join("" if folder == "." else folder, stem), suffix


def keys_of(name: str) -> tuple[str, ...]:
    """The keys that a sample may have which an annotation calls `name`, the likeliest first: split
    at the last dot, not split, split at the first dot.
    """
    return tuple(dict.fromkeys(all_keys_of(name)))


def all_keys_of(name: str) -> tuple[str, str, str]:
    """Those three, equal ones too."""
    key, suffix = split_name(name)
    whole = f"{key}.{suffix}" if suffix else key
    return whole.rpartition(".")[0] if suffix else key, whole, key


def with_last_dots(samples: Samples) -> Samples:
    """The samples, those of names with further dots apart: in each place all of a key's.

    A suffix with dots stays a part of its key where the last dot gives no picture with a text, and
    where it is a negative of the key's own picture.
    """
    found: Samples = {}
    for key, parts in samples.items():
        inner: Samples = {}
        for suffix, member in parts.items():
            middle, dot, last = suffix.rpartition(".")
            if dot and not (_NEGATIVE.fullmatch(suffix) and picture_of(parts) is not None):
                inner.setdefault(middle, {})[last] = member
        whole = {
            middle: own
            for middle, own in inner.items()
            if own.keys() & set(IMAGE_SUFFIXES) and own.keys() & set(TEXT_SUFFIXES)
        }
        taken = {f"{middle}.{last}" for middle, own in whole.items() for last in own}
        rest = {suffix: member for suffix, member in parts.items() if suffix not in taken}
        if rest:
            found[key] = rest
        found |= {f"{key}.{middle}": own for middle, own in whole.items()}
    return found


def picture_of(parts: Mapping[str, T]) -> T | None:
    """The picture among the parts of a sample, or None."""
    return next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)


def why_no_picture(parts: Mapping[str, T]) -> str:
    """What a sample without a picture has instead, for a message."""
    has = ", ".join(sorted(parts)[:4]) if parts else "no whole member"
    dotted = any("." in suffix and suffix.rpartition(".")[2] in IMAGE_SUFFIXES for suffix in parts)
    return ("split at the first dot of its name it has " if dotted else "it has ") + has


def negatives_in(parts: Mapping[str, T]) -> tuple[list[T], list[T]]:
    """The members with negative captions and with negative pictures, by name.

    >>> negatives_in({"jpg": 0, "neg_caption": 1, "neg_image": 2, "neg_2.txt": 3, "neg_2.jpg": 4})
    ([3, 1], [4, 2])
    """
    texts, pictures = [], []
    for suffix in sorted(parts):
        if found := _NEGATIVE.fullmatch(suffix):
            what, last = found[1], found[2]
            if last in IMAGE_SUFFIXES or (last is None and what == "image"):
                pictures.append(parts[suffix])
            elif last in CAPTION_SUFFIXES or (last is None and what):
                texts.append(parts[suffix])
    return texts, pictures


def is_negative(suffix: str) -> bool:
    """Whether a member is a negative caption or a negative picture."""
    return any(negatives_in({suffix: 0}))


def is_text(suffix: str) -> bool:
    """Whether a member is read for its text."""
    return suffix.rpartition(".")[2] in TEXT_SUFFIXES or bool(negatives_in({suffix: 0})[0])

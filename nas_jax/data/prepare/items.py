"""What readers of inputs hand to writers of shards: units of work, pictures and losses."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nas_jax.data.annotations import NOTHING, Annotations
from nas_jax.data.sources import usable_captions

# Control characters but for tab, line feed and carriage return. Those that part words become
# blanks.
_SPACING = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class Loss(NamedTuple):
    """A picture that was not kept."""

    reason: str
    name: str  # key, path or member
    file: str  # the input it is named in
    detail: str = ""
    captions: int = 0  # captions that were lost with it


def overlap_reason(name: str) -> str:
    """The reason of a picture that was left out because the evaluation set `name` holds it."""
    return f"overlap with {name}"


class InputPair(NamedTuple):
    """A picture as the input holds it, with its usable captions."""

    key: str
    image: bytes
    captions: list[str]
    captions_in: int  # captions before those were dropped of which cleaning leaves nothing
    mended: int  # captions with control characters or bytes that are no UTF-8
    file: str
    annotations: Annotations = NOTHING  # with the bytes of negative pictures
    negatives_lost: int = 0  # negative pictures that are not there


@dataclass(frozen=True)
class Unit:
    """One piece of work, and one shard of the result."""

    # webdataset, albef, coco, karpathy, jsonl, tsv, csv, token, files, groups, parquet, tfds
    kind: str
    path: str  # the file, or the tfds entry
    size: int  # of the file, bytes
    mtime_ns: int
    # where it begins and ends: bytes of the plain text (lists), row groups (parquet), or entries
    start: int = 0
    end: int = 0
    count: int = 0  # entries in it, 0 where that is not known yet
    root: str = ""  # the folder or zip that picture paths start from
    strip: str = ""  # what is taken off the front of picture paths
    # tables: names of the columns; parquet: those of pictures, captions and perhaps keys;
    # tfds: the feature with the captions, if it was named
    columns: tuple[str, ...] = ()
    delimiter: str = ""  # tables: what parts the columns
    # coco, karpathy, entries: path, captions, and perhaps annotations (`lists.Entry`)
    entries: tuple[tuple, ...] = field(default=(), repr=False)

    def fingerprint(self) -> dict[str, Any]:
        """What the unit is made from; equal only where reading it again would give the same."""
        names = ("kind", "path", "size", "mtime_ns", "start", "end", "root")
        values = {name: getattr(self, name) for name in names}
        if self.strip:  # not noted otherwise: folders that were made without it stay as they are
            values["strip"] = self.strip
        return values | {
            name: os.path.abspath(values[name])
            for name in ("path", "root")
            if self.kind != "tfds" and "://" not in values[name]
        }


def mend(text: str) -> str:
    """A caption without control characters (but tab and line ends); what is no UTF-8 is U+FFFD.

    Control characters that are white space become blanks. Unreadable bytes come as lone surrogates.
    """
    if not text.isascii():
        text = _LONE_SURROGATE.sub("\ufffd", text)
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return _CONTROL.sub("", _SPACING.sub(" ", text))


def mended_captions(texts: Sequence[Any]) -> tuple[list[str], int]:
    """The usable ones, mended, and how many needed it."""
    texts = [text for text in texts if isinstance(text, str)]
    whole = [mend(text) for text in texts]
    return usable_captions(whole, clean=True), sum(
        a != b for a, b in zip(whole, texts, strict=True)
    )


def mended_annotations(found: Annotations) -> Annotations:
    """With their texts mended, and without negative captions of which cleaning leaves nothing."""
    if not any(found):
        return NOTHING
    texts = [one._replace(text=mend(one.text), of=mend(one.of)) for one in found.negative_captions]
    usable = (one for one in texts if usable_captions([one.text], clean=True))
    kept = tuple(dict.fromkeys(usable))
    regions = tuple(one._replace(phrase=mend(one.phrase)) for one in found.regions)
    return found._replace(negative_captions=kept, group=mend(found.group), regions=regions)


def printable(text: str) -> str:
    """A key or path that can be written down: what is no UTF-8 becomes U+FFFD."""
    return text if text.isascii() else mend(text)

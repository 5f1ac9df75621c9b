"""What every source yields, one picture with its captions; and what is drawn before one is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

import numpy as np

from nas_jax.data.text_ops import sentences_of

MARK = "#"
"""Stands between the name of a source and that of a variation, in the key of a record."""


def source_of(key: str) -> str:
    """The key up to its last mark; all of it where it has none."""
    return key.rpartition(MARK)[0] or key


Box = tuple[float, float, float, float]
"""Left, top, width, height, in pixels."""


class Region(NamedTuple):
    """A part of a picture (`regions.py` has the names of fields)."""

    box: Box | None  # in pixels of the record's picture, turned upright; None: nobody says where
    phrase: str = ""  # what it shows, "" where the data do not say


class NegativeCaption(NamedTuple):
    """A text that is not true of a picture."""

    text: str
    kind: str = ""  # what was changed: relation, attribute ...; "" where the data do not say
    of: str = ""  # the caption that it was made from; "": it stands beside all of them


@dataclass(frozen=True)
class Record:
    """One picture with its captions, and what the data set has against it.

    A source offers ``len(source)`` and ``source[i] -> Record``, is picklable, and is cheap to open
    in a worker.
    """

    key: str  # unique within the source
    image: bytes | np.ndarray  # an encoded file, or uint8 (H, W, 3) RGB
    captions: tuple[str, ...]  # alternatives, each true of the picture
    image_id: int  # equal for records that show the same picture content
    negative_captions: tuple[NegativeCaption, ...] = ()
    # encoded files of which no caption is true; one is read when it is asked for
    negative_images: Sequence[bytes] = ()
    group: str = ""  # what variations of one picture have in common; "": the key up to its mark
    regions: tuple[Region, ...] = ()  # boxes and phrases; no method trains on them


@dataclass(frozen=True)
class Draw:
    """What is drawn for one place in the stream, before anything is read."""

    index: int  # of the record
    share: float  # in [0, 1): which of its captions
    seed: int  # of the crop and of what follows
    length: int  # positions that the tokens of its batch are padded to

    def caption(self, captions: Sequence[str]) -> str:
        """The one drawn."""
        return captions[int(self.share * len(captions))]

    def text(self, captions: Sequence[str], sentences: int = 0) -> str:
        """What is read of the one drawn: 1 to `sentences` neighbouring ones; 0: all of it."""
        caption = self.caption(captions)
        found = sentences_of(caption) if sentences else []
        if len(found) < 2:
            return caption
        key = (crc32(b"sentences"),)  # a stream of its own: crops stay what they were
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
        count = int(rng.integers(min(sentences, len(found)))) + 1
        first = int(rng.integers(len(found) - count + 1))
        return " ".join(found[first : first + count])

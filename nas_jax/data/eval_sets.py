"""What an evaluation reads, whatever kind of data it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Foil:
    """A picture, a true caption and a false near copy; right if the caption scores higher."""

    image: int  # index into EvalSet.images
    caption: str
    foil: str
    category: str


@dataclass(frozen=True)
class Quad:
    """Two pictures and two captions; caption_k is true of image_k alone (Winoground: Thrush et al.

    2022, section 3).
    """

    image_0: int  # index into EvalSet.images
    image_1: int
    caption_0: str
    caption_1: str
    category: str


@dataclass(frozen=True)
class EvalSet:
    """Pictures with captions for retrieval, foils and quads; each of the three may be empty."""

    name: str  # "val", "heldout"
    # images[i] -> uint8 (H, W, 3), already resized to the model's image_size
    images: Sequence[np.ndarray]
    # captions[i] are those of images[i]; () where retrieval does not apply
    captions: tuple[tuple[str, ...], ...]
    foils: tuple[Foil, ...]
    quads: tuple[Quad, ...]
    # one an image; images with equal ids are right for each other's captions
    image_ids: tuple[int, ...] = ()

"""How a picture is brought to the size of a model: `squash`, as this project trains, or `crop`, as
CLIP's own code does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nas_jax.data.deep_pixels import Range
from nas_jax.data.image_ops import ImageError, decode, resize
from nas_jax.evals.benchmarks.pictures import (
    Files,
    Gallery,
    NoPictures,
    PictureRef,
    Pictures,
    Place,
    crop,
)
from nas_jax.evals.benchmarks.reading import Unusable

if TYPE_CHECKING:
    from nas_jax.evals.benchmarks.assemble import LoadOptions

FITS = {
    "squash": "resized without regard to the aspect ratio",
    "crop": "the square in the middle, resized",
}
"""Name -> what the protocol says of it."""


def original(files: Pictures, picture: PictureRef, value_range: Range = ()) -> np.ndarray:
    """A picture as a benchmark shows it, uint8 (H, W, 3): upright, cut to its box. value_range: see
    `decode`.

    Raises Unusable where it cannot be shown.
    """
    try:
        image_HxWx3 = decode(files.read(picture.name), value_range)
    except ImageError as error:
        raise Unusable(error.reason, f"{picture.name}: {error.detail}") from error
    return image_HxWx3 if picture.box is None else crop(image_HxWx3, picture.box)


def fitted(image_HxWx3: np.ndarray, size: int, fit: str) -> np.ndarray:
    """The picture as uint8 (size, size, 3). fit: one of FITS."""
    if fit == "crop":
        height, width = image_HxWx3.shape[:2]
        edge = min(height, width)
        top, left = (height - edge) // 2, (width - edge) // 2
        image_HxWx3 = np.ascontiguousarray(image_HxWx3[top : top + edge, left : left + edge])
    return resize(image_HxWx3, size)


def path_of(files: Files, name: str) -> str | None:
    """Where a picture is a file of its own; None where it lies in a tar or zip file.

    Raises Unusable where there is none.
    """
    place = files.place(name)
    return place.path if isinstance(place, Place) and place.size < 0 else None


class Unread(NoPictures):
    """Pictures that were not looked for, and where they can be."""

    def __init__(self, files: Files, pictures: Sequence[PictureRef]):
        super().__init__(len(pictures))
        self.files, self.pictures = files, tuple(pictures)


class _Cropped(Gallery):
    """A gallery of the squares in the middle."""

    def _read(self, index: int) -> np.ndarray:
        return fitted(original(self._files, self._pictures[index], self._range), self._size, "crop")


def gallery_of(
    files: Pictures, pictures: Sequence[PictureRef], options: LoadOptions
) -> Gallery | NoPictures:
    """The pictures as `options` wants them; without a size, `Unread` where they are files."""
    if options.image_size is None:
        return Unread(files, pictures) if isinstance(files, Files) else NoPictures(len(pictures))
    kind = _Cropped if options.fit == "crop" else Gallery
    return kind(files, pictures, options.image_size, options.image_range)

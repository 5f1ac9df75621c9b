"""Pictures as a shard stores them: decoded once, perhaps shrunk or brought to 8 bits."""

from __future__ import annotations

import io
from typing import Protocol

import numpy as np
from PIL import Image

from nas_jax.data.image_errors import ImageError
from nas_jax.data.image_ops import decode, has_deep_pixels

# pictures from lossless files with no more colours stay lossless when they are shrunk
PNG_COLOURS = 256

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)


class StoredAs(Protocol):
    """What of `units.Options` decides how a picture is stored."""

    @property
    def short_side(self) -> int: ...
    @property
    def quality(self) -> int: ...
    @property
    def image_range(self) -> tuple[float, ...]: ...


def decoded(image: bytes, options: StoredAs) -> tuple[np.ndarray, bytes]:
    """The pixels of a file, and the file; of 8 bits where a range is given. Raises ImageError."""
    if not image:
        raise ImageError("empty file", "0 bytes")
    image_HxWx3 = decode(image, options.image_range)
    if options.image_range and has_deep_pixels(image):
        return image_HxWx3, _png(Image.fromarray(image_HxWx3))
    return image_HxWx3, image


def stored_form(
    image_HxWx3: np.ndarray, data: bytes, options: StoredAs
) -> tuple[np.ndarray, bytes]:
    """The pixels and the file as they are stored: perhaps shrunk."""
    if not options.short_side:
        return image_HxWx3, data
    return shrink(image_HxWx3, data, options.short_side, options.quality)


def format_of(data: bytes) -> str:
    """JPEG, PNG, WEBP, GIF, BMP, TIFF or other, by the first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), "other")


def shrink(
    image_HxWx3: np.ndarray, data: bytes, short_side: int, quality: int
) -> tuple[np.ndarray, bytes]:
    """The picture and its file, shrunk to a short side of short_side pixels if it is larger.

    Larger ones are shrunk with antialiasing (bicubic) and stored upright: as PNG where the file was
    lossless (PNG, GIF, BMP, TIFF) and shows at most PNG_COLOURS colours, so that drawings keep
    clean edges, else as JPEG without chroma subsampling.
    """
    height, width = image_HxWx3.shape[:2]
    if min(height, width) <= short_side:
        return image_HxWx3, data
    scale = short_side / min(height, width)
    size = max(short_side, round(width * scale)), max(short_side, round(height * scale))
    small = Image.fromarray(image_HxWx3).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if format_of(data) in ("PNG", "GIF", "BMP", "TIFF") and _few_colours(image_HxWx3):
        return np.asarray(small), _png(small)
    small.save(buffer, "JPEG", quality=quality, subsampling=0)
    return np.asarray(small), buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _few_colours(image_HxWx3: np.ndarray) -> bool:
    red, green, blue = (image_HxWx3[..., channel].astype(np.uint32) for channel in range(3))
    return len(np.unique(red << 16 | green << 8 | blue)) <= PNG_COLOURS

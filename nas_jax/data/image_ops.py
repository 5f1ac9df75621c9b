"""Pictures on the host: bytes to uint8 (H, W, 3) RGB, crops, and RandAugment.

Every random operation takes the generator it draws from, so a picture is a function of (bytes, generator state).
"""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageOps

MAX_IMAGE_PIXELS = 64_000_000  # more is refused before it is decoded: a small file can unpack to gigabytes
CROP_RATIO = (3 / 4, 4 / 3)
FILL = (128, 128, 128)  # what warps show where they leave the picture


class ImageError(ValueError):
    """Bytes that are no usable picture. `reason` is one of a few fixed phrases, `detail` says more."""

    def __init__(self, reason: str, detail: str):
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason} ({detail})")

    def __reduce__(self):
        return type(self), (self.reason, self.detail)  # Exception would pass on the one joined string


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """An encoded file as uint8 (H, W, 3) RGB: turned upright as EXIF says, transparent parts over white.

    Arrays pass unchanged. Raises ImageError on anything that is not a whole picture of at most MAX_IMAGE_PIXELS.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError("not an image", f"array {image.shape} {image.dtype}")
        return image
    try:
        with Image.open(io.BytesIO(image)) as opened:
            width, height = opened.size
            if width * height > MAX_IMAGE_PIXELS:
                raise ImageError("image too large", f"{width}x{height} pixels")
            opened.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(opened)))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("image too large", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("not an image", f"{len(image)} bytes of no known format") from error
    except (
        Exception
    ) as error:  # on damaged files decoders raise about anything: OSError, SyntaxError, struct.error, ...
        raise ImageError("damaged image", f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Sixteen bits a pixel; convert() would clip all above 255 to white.
        grey = np.asarray(image, np.float64)
        image = Image.fromarray(np.uint8(np.clip(grey / 257 if grey.max(initial=0) > 255 else grey, 0, 255)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def resize(image_HxWx3: np.ndarray, size: int) -> np.ndarray:
    """Bicubic to (size, size), without regard to the aspect ratio, antialiased."""
    if image_HxWx3.shape[:2] == (size, size):
        return image_HxWx3
    return np.asarray(Image.fromarray(image_HxWx3).resize((size, size), Image.Resampling.BICUBIC))


def random_resized_crop(
    image_HxWx3: np.ndarray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = CROP_RATIO,
) -> np.ndarray:
    """A random rectangle of the picture, resized to (size, size).

    Its share of the area is uniform in `scale`, the logarithm of width/height uniform in that of `ratio`. A rectangle
    that does not fit is drawn anew; after ten, the largest centred one with an allowed ratio is taken (Inception crop,
    Szegedy et al. 2015, as torchvision defines it).
    """
    top, left, height, width = _draw_crop(image_HxWx3.shape[0], image_HxWx3.shape[1], rng, scale, ratio)
    return resize(np.ascontiguousarray(image_HxWx3[top : top + height, left : left + width]), size)


def _draw_crop(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the crop."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        crop_width, crop_height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = max(1, min(width, round(height * aspect)))
    crop_height = max(1, min(height, round(width / aspect)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def flip(image_HxWx3: np.ndarray) -> np.ndarray:
    """Mirrored left to right."""
    return np.ascontiguousarray(image_HxWx3[:, ::-1])


# ---------------------------------------------------------------------------------------------------------- RandAugment
# Cubuk et al. 2020, in ALBEF's choice of operations (ALBEF code, dataset/randaugment.py): those that change colours are
# left out, as captions name colours. Each takes (image, level in [0, 1]); the caller draws the sign.


def identity(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """The picture as it is."""
    return image_HxWx3


def auto_contrast(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """Stretches each channel to 0..255; a channel of one value stays."""
    tables = []
    for channel in range(3):
        # int: uint8 would overflow below.
        low, high = int(image_HxWx3[..., channel].min()), int(image_HxWx3[..., channel].max())
        scale = 255 / (high - low) if high > low else 1.0
        tables.append(_table(np.arange(256) * scale - (low * scale if high > low else 0)))
    return _look_up(image_HxWx3, tables)


def equalize(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """Flattens the histogram of each channel; the brightest value that occurs does not count towards the step."""
    tables = []
    for channel in range(3):
        counts = np.bincount(image_HxWx3[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[np.nonzero(counts)[0][-1]]) // 255
        before = np.concatenate([[0], np.cumsum(counts)[:-1]])  # pixels darker than each value
        tables.append(_table((before + step // 2) // step) if step else _table(np.arange(256)))
    return _look_up(image_HxWx3, tables)


def brightness(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """Multiplies by 0.1 + 1.8 level."""
    return _look_up(image_HxWx3, [_table(np.arange(256) * _factor(level))] * 3)


def sharpness(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """blurred + (0.1 + 1.8 level) (image - blurred) for a 3x3 blur with centre 5 of 13; the border stays."""
    if min(image_HxWx3.shape[:2]) < 3:
        return image_HxWx3
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    blurred = cv2.filter2D(image_HxWx3, -1, kernel / 13).astype(np.float32)
    mixed = blurred + _factor(level) * (image_HxWx3 - blurred)
    out = image_HxWx3.copy()
    out[1:-1, 1:-1] = np.clip(mixed, 0, 255)[1:-1, 1:-1].astype(np.uint8)
    return out


def shear_x(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """Moves each row to the right by 0.3 level of its distance from the top."""
    return _warp(image_HxWx3, [[1, 0.3 * level, 0], [0, 1, 0]])


def shear_y(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """Moves each column down by 0.3 level of its distance from the left."""
    return _warp(image_HxWx3, [[1, 0, 0], [0.3 * level, 1, 0]])


def translate_x(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """Moves the picture left by 10 level pixels, whatever its size."""
    return _warp(image_HxWx3, [[1, 0, -10 * level], [0, 1, 0]])


def translate_y(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """Moves the picture up by 10 level pixels, whatever its size."""
    return _warp(image_HxWx3, [[1, 0, 0], [0, 1, -10 * level]])


def rotate(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """Turns counter-clockwise by 30 level degrees about the middle."""
    height, width = image_HxWx3.shape[:2]
    return _warp(image_HxWx3, cv2.getRotationMatrix2D((width / 2, height / 2), 30 * level, 1))


PLAIN_OPS: tuple[Callable, ...] = (identity, auto_contrast, equalize, brightness, sharpness)
SIGNED_OPS: tuple[Callable, ...] = (shear_x, shear_y, translate_x, translate_y, rotate)


def rand_augment(image_HxWx3: np.ndarray, rng: np.random.Generator, ops: int, magnitude: int) -> np.ndarray:
    """Applies `ops` operations drawn with replacement, each with probability one half, at level magnitude / 10."""
    table = PLAIN_OPS + SIGNED_OPS
    for index in rng.integers(len(table), size=ops):
        applied, negative = rng.random(2) < 0.5
        if applied:
            level = magnitude / 10
            image_HxWx3 = table[index](image_HxWx3, -level if negative and table[index] in SIGNED_OPS else level)
    return image_HxWx3


def _factor(level: float) -> float:
    return 1.8 * level + 0.1


def _table(values_256: np.ndarray) -> np.ndarray:
    return np.clip(values_256, 0, 255).astype(np.uint8)


def _look_up(image_HxWx3: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    return cv2.LUT(np.ascontiguousarray(image_HxWx3), np.stack(tables, axis=-1)[None])


def _warp(image_HxWx3: np.ndarray, forward_2x3) -> np.ndarray:
    """Bilinear; forward_2x3 takes (x, y) of the picture to that of the result."""
    height, width = image_HxWx3.shape[:2]
    matrix = np.asarray(forward_2x3, np.float32)
    return cv2.warpAffine(
        np.ascontiguousarray(image_HxWx3),
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=FILL,
    )

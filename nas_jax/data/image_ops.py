"""Pictures on the host: bytes to uint8 (H, W, 3) RGB, crops, and RandAugment.

Every random operation takes the generator it draws from, so a picture is a function of (bytes,
generator state).
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from nas_jax.data.deep_pixels import Range, is_deep, to_levels
from nas_jax.data.image_errors import ImageError

# more is refused before it is decoded: a small file can unpack to gigabytes
MAX_IMAGE_PIXELS = 64_000_000
# none that runs programs, as EPS does
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
_TIFF = (b"II*\0", b"MM\0*")
CROP_RATIO = (3 / 4, 4 / 3)
FILL = (128, 128, 128)  # what warps show where they leave the picture

# pictures are prepared side by side already: more threads would wait for each other
cv2.setNumThreads(0)
# our limit is below the one it tells of
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


# ----------------------------------------------------------------------------------------- decoding


def decode(image: bytes | np.ndarray, value_range: Range = ()) -> np.ndarray:
    """An encoded file as uint8 (H, W, 3) RGB: upright as EXIF says, transparent parts white.

    value_range: the values that are black and white in pictures of more than 8 bits a sample; ():
    as the file says (`deep_pixels.py`).

    Of an animation, the first frame. RGB and grey JPEGs go through simplejpeg, which gives the same
    bits as Pillow (the same library and inverse DCT). Arrays pass unchanged.

    Raises ImageError on anything that is not a whole picture of at most MAX_IMAGE_PIXELS.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError("not an image", f"array {image.shape} {image.dtype}")
        return image
    opened = _open(image)
    if _is_plain_jpeg(opened):
        pixels_HxWx3, _ = _decode_jpeg(image, opened)
    else:
        pixels_HxWx3 = _load(image, opened, value_range)
    # PNG may tell the orientation after the pixels
    return _turn(pixels_HxWx3, _orientation(opened))


def has_deep_pixels(data: bytes) -> bool:
    """Whether the file has more than 8 bits a sample. Raises ImageError as `decode`."""
    return is_deep(_open(data), data)


def decode_crop(
    image: bytes | np.ndarray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, ...],
    value_range: Range = (),
) -> np.ndarray:
    """`decode` and `random_resized_crop` in less time: uint8 (size, size, 3).

    Where `scale` is (), `resize` instead of the crop. The crop is drawn before decoding, with the
    same calls of `rng`. The difference is in how RGB and grey JPEGs are resized: with `_resample`,
    and where the crop is at least 4, 8 or 16 times `size` on both sides, the inverse DCT has shrunk
    the picture by half of that. Against the two functions above, natural pictures then differ by
    less than 1 level of 255 on average and less than 12 anywhere. All other pictures go through the
    two.

    Raises ImageError where `decode` does, with the same reason.
    """
    if not isinstance(image, np.ndarray):
        opened = _open(image)
        if _is_plain_jpeg(opened):
            return _jpeg_crop(image, opened, rng, size, scale)
    image_HxWx3 = decode(image, value_range)
    return (
        random_resized_crop(image_HxWx3, rng, size, scale) if scale else resize(image_HxWx3, size)
    )


def _jpeg_crop(
    data: bytes,
    opened: Image.Image,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, ...],
) -> np.ndarray:
    orientation = _orientation(opened)
    turned, rows, columns = _TURNS[orientation]
    # The crop is drawn in the upright picture and cut from the stored one; the small result is
    # turned.
    width, height = opened.size[::-1] if turned else opened.size
    top, left, crop_height, crop_width = (
        _draw_crop(height, width, rng, scale, CROP_RATIO) if scale else (0, 0, height, width)
    )
    top = top if rows > 0 else height - top - crop_height
    left = left if columns > 0 else width - left - crop_width
    box = (left, top, crop_width, crop_height) if turned else (top, left, crop_height, crop_width)
    shrink = next((n for n in (8, 4, 2) if min(crop_height, crop_width) >= _GAP * n * size), 1)
    pixels_HxWx3, shrink = _decode_jpeg(data, opened, shrink)
    y, x, down, across = (edge / shrink for edge in box)
    return _turn(_resample(pixels_HxWx3, y, x, down, across, size), orientation)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turns what decoders raise on damaged files, which may be anything, into ImageError."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image too large", str(error)) from error
    except Exception as error:
        raise ImageError("damaged image", f"{type(error).__name__}: {error}") from error


def _open(data: bytes) -> Image.Image:
    """Reads the header. Raises ImageError before anything large is allocated."""
    if not data:
        raise ImageError("empty file", "0 bytes")
    with _reading():
        try:
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.UnidentifiedImageError as error:
            what = "a TIFF of an unknown form" if data[:4] in _TIFF else "no known format"
            raise ImageError("not an image", f"{len(data)} bytes of {what}") from error
    width, height = opened.size
    if width * height > MAX_IMAGE_PIXELS:
        raise ImageError("image too large", f"{width}x{height} pixels")
    return opened


def _is_plain_jpeg(opened: Image.Image) -> bool:
    return opened.format in ("JPEG", "MPO") and opened.mode in ("RGB", "L")


def _decode_jpeg(data: bytes, opened: Image.Image, shrink: int = 1) -> tuple[np.ndarray, int]:
    """(pixels, shrink): as stored, 1/shrink of the size each way, rounded up; with shrink 1 where
    only Pillow reads it.

    Pillow reads past marks that `strict` refuses, such as stray bytes between segments, and decides
    what is damaged.
    """
    width, height = opened.size
    shape = (-(-height // shrink), -(-width // shrink))
    try:
        pixels_HxWx3 = simplejpeg.decode_jpeg(
            data, "RGB", min_height=shape[0], min_width=shape[1], strict=True
        )
        if pixels_HxWx3.shape[:2] == shape:
            return pixels_HxWx3, shrink
    except ValueError:
        pass
    return _load(data, opened), 1


def _load(data: bytes, opened: Image.Image, value_range: Range = ()) -> np.ndarray:
    """The pixels as stored, over white, by Pillow."""
    with _reading():
        if is_deep(opened, data):
            opened = to_levels(opened, data, value_range)
        opened.load()
        return np.asarray(_to_rgb(opened))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


# EXIF orientation -> (transposed, step along rows, step along columns), applied in this order
_TURNS = {
    1: (False, 1, 1),
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}


def _orientation(opened: Image.Image) -> int:
    try:
        number = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # A damaged EXIF block says nothing about the pixels, and the parser raises about anything.
        return 1
    return number if number in _TURNS else 1


def _turn(image_HxWx3: np.ndarray, orientation: int) -> np.ndarray:
    """From the order in the file to upright."""
    transposed, rows, columns = _TURNS[orientation]
    image_HxWx3 = image_HxWx3.swapaxes(0, 1) if transposed else image_HxWx3
    return np.ascontiguousarray(image_HxWx3[::rows, ::columns])


# ---------------------------------------------------------------------------------- sizes and crops


def resize(image_HxWx3: np.ndarray, size: int) -> np.ndarray:
    """Bicubic to (size, size), without regard to the aspect ratio, antialiased."""
    if image_HxWx3.shape[:2] == (size, size):
        return image_HxWx3
    return np.asarray(Image.fromarray(image_HxWx3).resize((size, size), Image.Resampling.BICUBIC))


def random_resized_crop(
    image_HxWx3: np.ndarray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, ...],
    ratio: tuple[float, float] = CROP_RATIO,
) -> np.ndarray:
    """A random rectangle of the picture, resized to (size, size).

    Its share of the area is uniform in `scale`, the logarithm of width/height uniform in that of
    `ratio`. A rectangle that does not fit is drawn anew; after ten, the largest centred one with an
    allowed ratio is taken (Inception crop, Szegedy et al. 2015, as torchvision defines it).
    """
    top, left, height, width = _draw_crop(
        image_HxWx3.shape[0], image_HxWx3.shape[1], rng, scale, ratio
    )
    return resize(np.ascontiguousarray(image_HxWx3[top : top + height, left : left + width]), size)


def _draw_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, ...],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the crop."""
    least, most = scale
    for _ in range(10):
        area = height * width * rng.uniform(least, most)
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


# the inverse DCT only averages blocks: what it leaves must still be shrunk by this much with care
_GAP = 2
# shrinking by more is left to Pillow: the filter would have too many taps to be fast
_MAX_FITTED = 6.0
_FREQUENCIES = np.linspace(0, 0.5, 129)  # cycles a pixel


def _resample(
    pixels_HxWx3: np.ndarray, top: float, left: float, height: float, width: float, size: int
) -> np.ndarray:
    """A box resized to (size, size), as Pillow's antialiased bicubic to a level or so.

    It is four times as fast. cv2's bicubic has no antialiasing, but works with integers. It gets a
    picture that was filtered so that the two together have the frequency response of Pillow's. The
    box may begin and end between pixels.
    """
    if (height, width) == (size, size) and top == int(top) and left == int(left):
        return pixels_HxWx3[int(top) : int(top) + size, int(left) : int(left) + size].copy()
    if max(height, width) > _MAX_FITTED * size:
        image, box = Image.fromarray(pixels_HxWx3), (left, top, left + width, top + height)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    first_row, first_column = math.ceil(top - 0.5), math.ceil(left - 0.5)
    cut = pixels_HxWx3[first_row : math.ceil(top + height), first_column : math.ceil(left + width)]
    filtered = cv2.sepFilter2D(
        cut,
        -1,
        _prefilter(_bin(width / size), left - first_column),
        _prefilter(_bin(height / size), top - first_row),
        borderType=cv2.BORDER_REPLICATE,
    )
    if cut.shape[:2] == (height, width):
        return cv2.resize(filtered, (size, size), interpolation=cv2.INTER_CUBIC)
    # Told the factors and not the size, cv2 takes the factors as they are; it may add a pixel at
    # the end.
    return cv2.resize(
        filtered, None, fx=size / width, fy=size / height, interpolation=cv2.INTER_CUBIC
    )[:size, :size]


def _bin(shrink: float) -> float:
    """Enlarging is all the same to the filter; shrinking, to 1/32."""
    return max(1.0, round(shrink * 32) / 32)


@functools.lru_cache(maxsize=4096)
def _prefilter(shrink: float, shift: float) -> np.ndarray:
    """Taps of the filter before cv2's bicubic on one axis: least squares over all frequencies.

    Pillow stretches the cubic kernel (a = -1/2) by `shrink`; cv2 does not, and has a = -3/4. The
    picture is also moved by `shift` pixels towards its beginning, -1/2 <= shift <= 1/2.
    """
    half = 1 + round(1.3 * shrink)
    taps = np.delete(np.arange(-half, half + 1), half)  # the middle one makes their sum 1
    own = _cubic_response(1.0, -0.75)
    wanted = _cubic_response(shrink, -0.5) * np.exp(2j * np.pi * _FREQUENCIES * shift)
    waves = (np.exp(2j * np.pi * _FREQUENCIES[:, None] * taps) - 1) * own[:, None]
    fitted, *_ = np.linalg.lstsq(
        np.concatenate([waves.real, waves.imag]),
        np.concatenate([(wanted - own).real, wanted.imag]),
        rcond=None,
    )
    return np.insert(fitted, half, 1 - fitted.sum()).astype(np.float32)


def _cubic_response(stretch: float, a: float) -> np.ndarray:
    """Fourier transform of the cubic kernel (Keys 1981), made `stretch` times as wide."""
    x = (np.arange(256) + 0.5) / 128
    kernel = np.where(x < 1, (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4))
    return (2 * kernel * np.cos(2 * np.pi * stretch * _FREQUENCIES[:, None] * x)).sum(axis=1) / 128


def flip(image_HxWx3: np.ndarray) -> np.ndarray:
    """Mirrored left to right."""
    return cv2.flip(image_HxWx3, 1)


# RandAugment Cubuk et al. 2020, in ALBEF's choice of operations (ALBEF code,
# dataset/randaugment.py): those that change colours are left out, as captions name colours. Each
# takes (image, level in [0, 1]); the caller draws the sign.


def identity(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """The picture as it is."""
    return image_HxWx3


def auto_contrast(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """Stretches each channel to 0..255; a channel of one value stays."""
    channels = cv2.split(image_HxWx3)
    tables = []
    for channel in channels:
        low, high = int(channel.min()), int(channel.max())  # int: uint8 would overflow below
        scale = 255 / (high - low) if high > low else 1.0
        tables.append(_table(_VALUES * scale - (low * scale if high > low else 0)))
    return cv2.merge(
        [cv2.LUT(channel, table) for channel, table in zip(channels, tables, strict=True)]
    )


def equalize(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """Flattens each channel's histogram; its brightest value does not count towards the step."""
    channels = cv2.split(image_HxWx3)
    tables = []
    for channel in channels:
        counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (channel.size - counts[channel.max()]) // 255
        before = np.cumsum(counts) - counts  # pixels darker than each value
        tables.append(_table((before + step // 2) // step) if step else _table(_VALUES))
    return cv2.merge(
        [cv2.LUT(channel, table) for channel, table in zip(channels, tables, strict=True)]
    )


def brightness(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """Multiplies by 0.1 + 1.8 level."""
    return cv2.LUT(image_HxWx3, _table(_VALUES * _factor(level)))


def sharpness(image_HxWx3: np.ndarray, level: float) -> np.ndarray:
    """blurred + (0.1 + 1.8 level) (image - blurred), blurred 3x3, the centre 5 of 13.

    The border stays.
    """
    if min(image_HxWx3.shape[:2]) < 3:
        return image_HxWx3
    factor = _factor(level)
    # addWeighted rounds; just under one half less makes it cut off the fraction, as the conversion
    # to uint8 does.
    out = cv2.addWeighted(
        image_HxWx3, factor, cv2.filter2D(image_HxWx3, -1, _BLUR), 1 - factor, -0.495
    )
    out[[0, -1]] = image_HxWx3[[0, -1]]
    out[:, [0, -1]] = image_HxWx3[:, [0, -1]]
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


def rand_augment(
    image_HxWx3: np.ndarray, rng: np.random.Generator, ops: int, magnitude: int
) -> np.ndarray:
    """Applies `ops` operations, drawn with replacement, each with probability 1/2.

    Their level is magnitude / 10.
    """
    table = PLAIN_OPS + SIGNED_OPS
    for index in rng.integers(len(table), size=ops):
        applied, negative = rng.random(2) < 0.5
        if applied:
            level = magnitude / 10
            image_HxWx3 = table[index](
                image_HxWx3, -level if negative and table[index] in SIGNED_OPS else level
            )
    return image_HxWx3


def distort(image_HxWx3: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The picture darker or brighter, with more or less contrast, and half of the time blurred.

    strength: 0 changes nothing; with 1 both factors are uniform in 0.6..1.4 and the deviation of
    the Gaussian is uniform in 0.1..2 pixels, as usual in contrastive learning (SimCLR, Chen et al.
    2020). Hues stay, as captions name colours.
    """
    if strength == 0:
        return image_HxWx3
    bright, contrast = 1 + 0.4 * strength * rng.uniform(-1, 1, 2)
    blurred, deviation = rng.random() < 0.5, strength * rng.uniform(0.1, 2.0)
    values_256 = _VALUES * bright
    mean = image_HxWx3.mean() * bright
    image_HxWx3 = cv2.LUT(image_HxWx3, _table(contrast * (values_256 - mean) + mean))
    return cv2.GaussianBlur(image_HxWx3, (0, 0), deviation) if blurred else image_HxWx3


_VALUES = np.arange(256)
_BLUR = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def _factor(level: float) -> float:
    return 1.8 * level + 0.1


def _table(values_256: np.ndarray) -> np.ndarray:
    return np.clip(values_256, 0, 255).astype(np.uint8)


def _warp(image_HxWx3: np.ndarray, forward_2x3) -> np.ndarray:
    """Bilinear; forward_2x3 takes (x, y) of the picture to that of the result."""
    height, width = image_HxWx3.shape[:2]
    warped_HxWx4 = cv2.warpAffine(
        # cv2 warps four channels twice as fast as three
        cv2.cvtColor(image_HxWx3, cv2.COLOR_RGB2RGBA),
        np.asarray(forward_2x3, np.float32),
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(*FILL, 255),
    )
    return cv2.cvtColor(warped_HxWx4, cv2.COLOR_RGBA2RGB)

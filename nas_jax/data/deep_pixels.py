"""Pictures of more than 8 bits a sample: which of their values are black and white.

The file says it, or data.image_range does. One picture's own extremes never decide, as the same
value would then be another grey in each picture.

    form                         black, white
    unsigned, up to 16 bits      0, and all ones in as many bits as the file names: those of a
                                 sample, MaxSampleValue (TIFF), sBIT if not scaled up (PNG);
                                 unknown where it names none and all values are below 4096, as
                                 those of 12 bits stored in 16 are
    signed; more than 16 bits    SMinSampleValue, SMaxSampleValue (TIFF)
    float                        the same; without them 0, 1 where no value lies outside
    anything else                unknown
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from nas_jax.data.image_errors import UNKNOWN_RANGE, ImageError

Range = tuple[float, ...]
"""The values that are black and white; () where none are named."""

# TIFF 6.0, sections 8 and 19
_BITS, _PHOTOMETRIC, _MAX, _FORM, _SIGNED_MIN, _SIGNED_MAX = 258, 262, 281, 339, 340, 341
_UNSIGNED, _FULL = 1, 65535
_NARROW = 4096  # values below fit into 12 bits


def is_deep(opened: Image.Image, data: bytes) -> bool:
    """Whether a sample has more than 8 bits, for all that Pillow tells of an opened file."""
    if opened.mode.startswith(("I", "F")):
        return True
    if opened.format == "PNG":
        return data[24:25] == b"\x10"  # the depth in IHDR
    return max(_tags(opened).get(_BITS, (1,))) > 8


def _tags(opened: Image.Image) -> Mapping[int, Any]:
    """Those of a TIFF; {} of another format."""
    return opened.tag_v2 if isinstance(opened, TiffImageFile) else {}


def to_levels(opened: Image.Image, data: bytes, wanted: Range) -> Image.Image:
    """A deep picture with 8 bits a sample: L, RGB or RGBA.

    wanted: the values that are black and white; (): as the file says.

    Raises ImageError where it does not say, and whatever Pillow raises on damaged files.
    """
    if not opened.mode.startswith(("I", "F")):
        return _colours(opened, data, wanted)
    values_HxW = _grey_values(opened)
    if not np.isfinite(values_HxW).all():
        raise ImageError("damaged image", f"mode {opened.mode} with values that are not finite")
    levels_HxW = _levels(values_HxW, wanted or _said(opened, data, values_HxW))
    if _tags(opened).get(_PHOTOMETRIC) == 0:  # WhiteIsZero
        levels_HxW = 255 - levels_HxW
    return Image.fromarray(levels_HxW)


def _levels(values: np.ndarray, ends: Range) -> np.ndarray:
    low, high = ends
    levels = np.clip((values.astype(np.float64) - low) * 255 / (high - low), 0, 255)
    # whole numbers are cut off, as the high byte of a sample is
    return (levels if values.dtype.kind in "iu" else np.rint(levels)).astype(np.uint8)


def _grey_values(opened: Image.Image) -> np.ndarray:
    opened.load()
    values_HxW = np.asarray(opened)
    unsigned = opened.format == "TIFF" and _tags(opened).get(_FORM, (_UNSIGNED,))[0] == _UNSIGNED
    return values_HxW.view(np.uint32) if opened.mode == "I" and unsigned else values_HxW


def _said(opened: Image.Image, data: bytes, values_HxW: np.ndarray) -> Range:
    """The ends that a grey file names."""
    tags = _tags(opened)
    if _SIGNED_MIN in tags and _SIGNED_MAX in tags:
        ends = float(_first(tags[_SIGNED_MIN])), float(_first(tags[_SIGNED_MAX]))
        if ends[0] < ends[1]:
            return ends
        raise _unknown(opened, f"SMinSampleValue and SMaxSampleValue {ends}")
    if opened.mode == "F":
        low, high = values_HxW.min(initial=0), values_HxW.max(initial=0)
        if low >= 0 and high <= 1:
            return 0, 1
        raise _unknown(opened, f"floats from {low:g} to {high:g}, where 0 to 1 is usual")
    if opened.format == "TIFF":
        top = _tiff_top(opened)
    elif opened.format == "PNG":
        top = _png_top(values_HxW, data)
    elif opened.format == "JPEG2000" and not _signed_jpeg2000(data):
        return 0, _FULL  # Pillow scales samples of fewer bits up
    else:
        raise _unknown(opened, f"{opened.format} of signed or unusual samples")
    if top == _FULL:
        _check_width(opened, data, int(values_HxW.max(initial=0)))
    return 0, top


def _check_width(opened: Image.Image, data: bytes, highest: int) -> None:
    """Raises ImageError where 16-bit samples may be those of 12 bits or fewer: they would come out
    nearly black. A picture of zeros alone is black in any range.
    """
    named = _MAX in _tags(opened) if opened.format == "TIFF" else _significant_bits(data) > 0
    if 0 < highest < _NARROW and not named:
        raise _unknown(opened, f"16 bits a sample, none above {highest}, and the file names none")


def _tiff_top(opened: Image.Image) -> int:
    """What is white in an unsigned TIFF, of grey or of colours.

    MaxSampleValue may be no more than the largest value of this one picture: only all ones in a
    number of bits says how many bits there are.
    """
    tags = _tags(opened)
    bits, stated = max(tags.get(_BITS, (1,))), tags.get(_MAX)
    if tags.get(_FORM, (_UNSIGNED,))[0] != _UNSIGNED:
        raise _unknown(opened, f"signed samples of {bits} bits, without SMin- and SMaxSampleValue")
    if stated is None and bits <= 16:
        return 2**bits - 1
    stated = int(max(stated)) if isinstance(stated, tuple) else int(stated or 0)
    own = stated.bit_length()
    if stated and (stated == 2**own - 1 or own == bits <= 16):
        return 2**own - 1
    what = f"MaxSampleValue {stated}" if stated else "no MaxSampleValue"
    raise _unknown(opened, f"samples of {bits} bits with {what}")


def _png_top(values: np.ndarray, data: bytes) -> int:
    """What is white in a 16-bit PNG whose sBIT names fewer significant bits, or none.

    The format asks for samples that are scaled up to 16 bits, and then it is 65535 all the same.
    Samples that cannot have been scaled up are as wide as sBIT says.
    """
    bits = _significant_bits(data)
    if not 1 <= bits < 16 or values.max(initial=0) >= 2**bits:
        return _FULL
    own, shift = values.astype(np.uint32) >> (16 - bits), 16 - bits
    scaled = [own << shift, np.rint(own * (_FULL / (2**bits - 1)))]
    if bits >= 8:
        scaled.append(own << shift | own >> (bits - shift))
    return _FULL if any(np.array_equal(values, one) for one in scaled) else 2**bits - 1


def _significant_bits(data: bytes) -> int:
    """The largest number in sBIT (alpha apart), or 0."""
    place = 8
    while place + 8 <= len(data):
        length, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if name == b"IDAT":
            break
        if name == b"sBIT":
            bits = data[place + 8 : place + 8 + length]
            return max(bits[: 3 if len(bits) > 2 else 1], default=0)
        place += 12 + length
    return 0


def _signed_jpeg2000(data: bytes) -> bool:
    place = data.find(b"\xff\x51")  # SIZ; the precision of the first component is 40 bytes on
    return place < 0 or bool(data[place + 40] & 0x80)


def _colours(opened: Image.Image, data: bytes, wanted: Range) -> Image.Image:
    """RGB of 16 bits a sample: its high bytes, by Pillow, unless something names other ends."""
    narrow = _MAX in _tags(opened) if opened.format == "TIFF" else 1 <= _significant_bits(data) < 16
    if not (wanted or narrow):
        opened.load()
        highest = np.asarray(opened.convert("RGB")).max()
        if highest < _NARROW >> 8:  # of the high bytes; the low ones tell black
            values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if values is not None and values.dtype == np.uint16:
                _check_width(opened, data, int(values[..., :3].max(initial=0)))
        return opened
    values_HxWxC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if opened.mode not in ("RGB", "RGBA") or values_HxWxC is None or values_HxWxC.ndim != 3:
        raise _unknown(opened, f"{opened.format} of {opened.mode} with more than 8 bits")
    if values_HxWxC.dtype != np.uint16:
        raise _unknown(opened, f"{opened.format} of {values_HxWxC.dtype}")
    colour_HxWx3 = values_HxWxC[..., 2::-1]
    ends: Range
    if wanted:
        ends = wanted
    elif opened.format == "TIFF":
        ends = 0, _tiff_top(opened)
    else:
        ends = 0, _png_top(colour_HxWx3, data)
    levels_HxWxC = _levels(colour_HxWx3, ends)
    if values_HxWxC.shape[2] == 4:
        alpha_HxWx1 = _levels(values_HxWxC[..., 3:], (0, _FULL))
        levels_HxWxC = np.concatenate([levels_HxWxC, alpha_HxWx1], axis=2)
    return Image.fromarray(np.ascontiguousarray(levels_HxWxC))


def _first(value) -> float:
    return value[0] if isinstance(value, tuple) else value


def _unknown(opened: Image.Image, detail: str) -> ImageError:
    mode = opened.mode[:4] if opened.mode.startswith("I;16") else opened.mode
    reason = UNKNOWN_RANGE.get(mode, UNKNOWN_RANGE["RGB"])
    remedy = "data.image_range, or --image-range of nas_jax.data.prepare, names black and white"
    return ImageError(reason, f"{detail}; {remedy}")

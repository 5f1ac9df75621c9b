"""Makes a unit into a shard: pictures are decoded, hashed, perhaps shrunk; failures are losses."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nas_jax.data.config import check_image_range
from nas_jax.data.image_errors import ImageError
from nas_jax.data.image_ops import decode, has_deep_pixels
from nas_jax.data.overlap import exact_hash, perceptual_hash
from nas_jax.data.prepare.folder import sha256_of, unit_path, write_durably
from nas_jax.data.prepare.inputs import read_unit
from nas_jax.data.prepare.items import InputPair, Loss, Unit
from nas_jax.data.prepared import About, ShardWriter, about_name, count_records, pairs_name
from nas_jax.data.records import Region
from nas_jax.data.regions import placed, scaled
from nas_jax.data.sources import image_id_of
from nas_jax.data.text_ops import clean_words
from nas_jax.storage.files import sync
from nas_jax.utils.errors import ConfigError

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


@dataclass(frozen=True)
class Options:
    """What decides the content of the shards, besides the inputs."""

    # folder or zip that picture paths of lists start from; "" = the folder of the list
    image_root: str = ""
    splits: tuple[str, ...] = ()  # Karpathy: which splits
    # tfds: the text feature with the captions, where the data set leaves that open
    tfds_captions: str = ""
    # pictures with a longer short side are stored shrunk to it; 0 = all as they are
    short_side: int = 0
    quality: int = 95  # of the JPEGs among these
    # what is black and white in pictures of more than 8 bits a sample, which are stored as PNGs of
    # 8 then; () = as the file says, and stored as it is
    image_range: tuple[float, ...] = ()
    strip: str = ""  # what picture paths of lists begin with on another machine; taken off
    groups: bool = False  # inputs are folders of groups

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range."""
        if self.short_side and self.short_side < 16:
            raise ConfigError(
                f"--short-side {self.short_side}",
                "at least 16 pixels, or 0",
                "256 or 384 are usual",
            )
        if not 1 <= self.quality <= 100:
            raise ConfigError(
                f"--quality {self.quality}", "1 to 100", "95 hardly changes a picture"
            )
        check_image_range(self.image_range, "--image-range")

    def fingerprint(self) -> dict[str, Any]:
        """Equal only for options that give the same records."""
        fields = asdict(self) | {"splits": list(self.splits)}
        fields["image_root"] = os.path.abspath(self.image_root) if self.image_root else ""
        ends = list(fields.pop("image_range"))
        fields |= {"image_range": ends} if ends else {}
        for name in ("strip", "groups"):
            if not fields[name]:  # not noted: folders that were made without it stay as they are
                del fields[name]
        return fields | {"quality": self.quality if self.short_side else 0}


def prepare_unit(
    unit: Unit,
    number: int,
    out: Path,
    options: Options,
    store: bool = True,
    tick: Callable[[int, int], None] = lambda seen, lost: None,
) -> tuple[int, int]:
    """Reads a unit and writes shard `number` of `out`, which gets its name when it is whole.

    Args:
      store: False writes the about file without the pictures.
      tick: called after each picture with the number of pictures and of losses so far.

    Returns:
      The number of pictures and of losses.
    """
    tally, losses = Tally(), []
    images_in = captions_in = mended = lost_negatives = 0
    wrong: list[str] = []  # of regions
    with NewShard(out, number, store) as shard:
        for item in read_unit(unit, out):
            images_in += 1
            if isinstance(item, InputPair):
                captions_in, mended = captions_in + item.captions_in, mended + item.mended
                lost_negatives += item.negatives_lost
                name = item.key
                item, broken, faults = _row(item, options)
                lost_negatives += broken
                wrong += (f"{name}: {fault}" for fault in faults)
            else:
                captions_in += item.captions
            if isinstance(item, Loss):
                losses.append(item)
            else:
                shard.write(*item)
                tally.add(*item)
            tick(images_in, len(losses))
        counts = {
            "images_in": images_in,
            "captions_in": captions_in,
            "mended": mended,
            "losses": losses,
            "negatives_lost": lost_negatives,
            "regions_lost": len(wrong),
            "regions_like": wrong[:1],
        }
        shard.finish(unit_fingerprint(unit, options), counts, tally)
    return images_in, len(losses)


def unit_fingerprint(unit: Unit, options: Options) -> dict[str, Any]:
    """Equal only where preparing the unit again would give the same shard."""
    return unit.fingerprint() | {"options": options.fingerprint()}


Row = tuple[About, bytes, list[bytes], list[Region]]
"""What is known of a record, its picture, its negative pictures, and its regions."""


def _row(pair: InputPair, options: Options) -> tuple[Row | Loss, int, list[str]]:
    """The record of a picture, or why there is none; how many of its negative pictures are damaged,
    and what is wrong with some of its regions. These are left out.
    """
    try:
        image_HxWx3, data = _decoded(pair.image, options)
    except ImageError as error:
        return Loss(error.reason, pair.key, pair.file, error.detail, pair.captions_in), 0, []
    negatives, negative_hashes = [], []
    for image in pair.annotations.negative_images:
        with contextlib.suppress(ImageError):  # counted below
            other_HxWx3, stored = _decoded(image, options)
            negatives.append(_stored(other_HxWx3, stored, options)[1])
            negative_hashes.append((exact_hash(image), perceptual_hash(other_HxWx3)))
    hashes = exact_hash(pair.image), perceptual_hash(image_HxWx3)
    size = image_HxWx3.shape[1::-1]
    regions, wrong = placed(pair.annotations.regions, size)
    image_HxWx3, data = _stored(image_HxWx3, data, options)
    height, width = image_HxWx3.shape[:2]
    found = pair.annotations
    annotations = found.negative_captions, len(negatives), found.group
    about = About(
        pair.key,
        image_id_of(pair.key),
        tuple(pair.captions),
        width,
        height,
        *hashes,
        *annotations,
        tuple(negative_hashes),
    )
    regions = scaled(regions, size, (width, height))
    lost = len(found.negative_images) - len(negatives)
    return (about, data, negatives, regions), lost, wrong


def _decoded(image: bytes, options: Options) -> tuple[np.ndarray, bytes]:
    """The pixels of a file, and the file; of 8 bits where a range is given. Raises ImageError."""
    if not image:
        raise ImageError("empty file", "0 bytes")
    image_HxWx3 = decode(image, options.image_range)
    if options.image_range and has_deep_pixels(image):
        return image_HxWx3, _png(Image.fromarray(image_HxWx3))
    return image_HxWx3, image


def _stored(image_HxWx3: np.ndarray, data: bytes, options: Options) -> tuple[np.ndarray, bytes]:
    """The pixels and the file as they are stored: perhaps shrunk."""
    if not options.short_side:
        return image_HxWx3, data
    return shrink(image_HxWx3, data, options.short_side, options.quality)


# ------------------------------------------------------------------------------------------- shards


class NewShard:
    """A shard under temporary names until `finish`; without that, nothing is left at the end."""

    def __init__(self, out: Path, number: int, store: bool = True):
        self._out, self._number = out, number
        self._names = ([pairs_name(number)] if store else []) + [about_name(number)]
        self._temporary = [self._out / f"{name}.tmp-{os.getpid()}" for name in self._names]
        self._writer = ShardWriter(
            str(self._temporary[0]) if store else None, str(self._temporary[-1])
        )

    def __enter__(self) -> NewShard:
        return self

    def __exit__(self, *exception: object) -> None:
        # of a full disk, for one, which has been reported by then
        with contextlib.suppress(OSError):
            self._writer.close()
        for path in self._temporary:
            path.unlink(missing_ok=True)

    def write(
        self,
        row: About,
        image: bytes,
        negatives: Sequence[bytes] = (),
        regions: Sequence[Region] = (),
    ) -> None:
        """Adds a record; negatives: its negative pictures."""
        self._writer.write(row, image, negatives, regions)

    def finish(self, fingerprint: dict[str, Any], counts: dict[str, Any], tally: Tally) -> None:
        """Puts the files in place, and beside them what they add to the manifest.

        Raises OSError.
        """
        self._writer.close()
        files: dict[str, Any] = {}
        for name, path in zip(self._names, self._temporary, strict=True):
            if count_records(path) != tally.records:
                raise OSError(errno.EIO, "the file was not written whole", str(path))
            prefix = "about_" if name == about_name(self._number) else ""
            files["about" if prefix else "file"] = name
            files |= {f"{prefix}bytes": path.stat().st_size, f"{prefix}sha256": sha256_of(path)}
            sync(path)
        # While the files change there is no unit: it would be done again.
        unit_path(self._out, self._number).unlink(missing_ok=True)
        for name, path in zip(self._names, self._temporary, strict=True):
            os.replace(path, self._out / name)
        sync(self._out)
        unit = {"fingerprint": fingerprint} | files | counts | tally.fields()
        write_durably(unit_path(self._out, self._number), json.dumps(unit))


class Tally:
    """Statistics of the records of one unit, as counts that can be added up."""

    def __init__(self):
        self.records = self.captions = self.bytes = 0
        self.words, self.widths, self.heights, self.formats = (
            Counter(),
            Counter(),
            Counter(),
            Counter(),
        )
        self.longest: tuple[int, str, str] = (0, "", "")
        self.negatives: Counter[str] = Counter()  # what there is of given negatives
        self.regions: Counter[str] = Counter()

    def add(
        self,
        row: About,
        image: bytes,
        negatives: Sequence[bytes] = (),
        regions: Sequence[Region] = (),
    ) -> None:
        """Counts a record."""
        self.regions.update(
            boxes=sum(one.box is not None for one in regions),
            phrases=sum(bool(one.phrase) for one in regions),
            pictures=bool(regions),
        )
        self.negatives.update(
            captions=len(row.negatives),
            captioned=bool(row.negatives),  # records with some
            images=len(negatives),
            bytes=sum(map(len, negatives)),
            pictured=bool(negatives),
            grouped=bool(row.group),
        )
        self.records += 1
        self.captions += len(row.captions)
        self.bytes += len(image)
        self.widths[row.width] += 1
        self.heights[row.height] += 1
        self.formats[format_of(image)] += 1
        for caption in row.captions:
            count = len(clean_words(caption))
            self.words[count] += 1
            if count > self.longest[0]:
                self.longest = count, row.key, caption[:300]

    def fields(self) -> dict[str, Any]:
        """What the unit's file says of them."""
        return {
            "records": self.records,
            "captions_out": self.captions,
            "image_bytes": self.bytes,
            "longest": self.longest,
            "negatives": dict(self.negatives),
            "regions": dict(self.regions),
        } | {
            # pairs: json would turn the numbers into texts
            name: sorted(getattr(self, name).items())
            for name in ("words", "widths", "heights", "formats")
        }


# ----------------------------------------------------------------------------------------- pictures


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

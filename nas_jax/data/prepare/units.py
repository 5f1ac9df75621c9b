"""Makes a unit into a shard: pictures are decoded, hashed, perhaps shrunk; failures are losses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas_jax.data.config import check_image_range
from nas_jax.data.image_errors import ImageError
from nas_jax.data.overlap import exact_hash, perceptual_hash
from nas_jax.data.prepare.inputs import read_unit
from nas_jax.data.prepare.items import InputPair, Loss, Unit
from nas_jax.data.prepare.shards import NewShard, Tally
from nas_jax.data.prepare.stored_pictures import decoded, stored_form
from nas_jax.data.prepared_files import About
from nas_jax.data.records import Region
from nas_jax.data.regions import placed, scaled
from nas_jax.data.sources import image_id_of
from nas_jax.utils.errors import ConfigError


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
                row, broken, faults = _row(item, options)
                lost_negatives += broken
                wrong += (f"{item.key}: {fault}" for fault in faults)
            else:
                captions_in += item.captions
                row = item
            if isinstance(row, Loss):
                losses.append(row)
            else:
                shard.write(*row)
                tally.add(*row)
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
        image_HxWx3, data = decoded(pair.image, options)
    except ImageError as error:
        return Loss(error.reason, pair.key, pair.file, error.detail, pair.captions_in), 0, []
    negatives, negative_hashes = [], []
    for image in pair.annotations.negative_images:
        with contextlib.suppress(ImageError):  # counted below
            other_HxWx3, stored = decoded(image, options)
            negatives.append(stored_form(other_HxWx3, stored, options)[1])
            negative_hashes.append((exact_hash(image), perceptual_hash(other_HxWx3)))
    hashes = exact_hash(pair.image), perceptual_hash(image_HxWx3)
    size = image_HxWx3.shape[1::-1]
    regions, wrong = placed(pair.annotations.regions, size)
    image_HxWx3, data = stored_form(image_HxWx3, data, options)
    height, width = image_HxWx3.shape[:2]
    found = pair.annotations
    about = About(
        pair.key,
        image_id_of(pair.key),
        tuple(pair.captions),
        width,
        height,
        *hashes,
        found.negative_captions,
        len(negatives),
        found.group,
        tuple(negative_hashes),
    )
    regions = scaled(regions, size, (width, height))
    lost = len(found.negative_images) - len(negatives)
    return (about, data, negatives, regions), lost, wrong

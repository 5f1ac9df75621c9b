"""Negative pictures of records, as --against compares and leaves them out."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple

from nas_jax.data.prepared_files import About, iter_about

_NAME = re.compile(r" \(negative picture \d+\)$")


class NegativePicture(NamedTuple):
    """A negative picture, as `overlap.Hashed`."""

    key: str
    sha: bytes
    phash: bytes


def negative_names(row: About) -> list[str]:
    """What its negative pictures are called, where they have hashes."""
    return [f"{row.key} (negative picture {k})" for k in range(1, len(row.negative_hashes) + 1)]


def is_negative(name: str) -> bool:
    """Whether a name is that of a negative picture."""
    return _NAME.search(name) is not None


def all_pictures(rows: Iterable[About]) -> Iterator[About | NegativePicture]:
    """Each record, and its negative pictures."""
    for row in rows:
        yield row
        for name, hashes in zip(negative_names(row), row.negative_hashes, strict=True):
            yield NegativePicture(name, *hashes)


def unhashed_line(folder: str | os.PathLike) -> str:
    """Says how many negative pictures of a prepared folder cannot be compared, "" for none."""
    counts = (row.negative_images - len(row.negative_hashes) for row in iter_about(folder))
    if not (count := sum(counts)):
        return ""
    return (
        f"{count:,} negative pictures of {folder} are not compared: an older version kept no "
        "hashes of them; prepare the files into a new folder to compare these too"
    )


def without(
    row: About, images: Sequence[bytes], names: Container[str]
) -> tuple[About, Sequence[bytes]]:
    """A record without its negative pictures of these names."""
    kept = [k for k, name in enumerate(negative_names(row)) if name not in names]
    if len(kept) == len(row.negative_hashes):
        return row, images
    hashes = tuple(row.negative_hashes[k] for k in kept)
    row = row._replace(negative_images=len(kept), negative_hashes=hashes)
    return row, [images[k] for k in kept]

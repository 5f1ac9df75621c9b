"""Keys, captions and annotations of the entries of lists and tars, in flat arrays.

Opening such a source reads all captions once, drops what cannot be used and counts it by reason in
`source.report`. After that it holds offsets and short strings, so it is cheap to send to a worker,
and reads one file (or one slice of a tar) an item. Nothing stays open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from nas_jax.data.annotations import NOTHING, Annotations
from nas_jax.data.negative_fields import Files
from nas_jax.data.records import NegativeCaption, Record, Region, source_of
from nas_jax.data.regions import placed, read_regions
from nas_jax.data.sources import Report, image_id_of
from nas_jax.storage.paths import is_bucket
from nas_jax.utils.errors import DataError


class Strings:
    """A list of strings in one block of bytes: millions of them pickle and copy in one piece."""

    def __init__(self, strings: Iterable[str]):
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        self._ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].decode("utf-8", "surrogatepass")

    def digest(self) -> str:
        """16 hexadecimal digits that change with any string and with their order."""
        return hashlib.blake2b(
            self._bytes,
            digest_size=8,
            salt=hashlib.blake2b(self._ends.data, digest_size=8).digest(),
        ).hexdigest()


class Kept(NamedTuple):
    """What there is beside the captions of a record."""

    negative_captions: tuple[NegativeCaption, ...] = ()
    negative_images: tuple[Any, ...] = ()  # where they are
    group: str = ""
    regions: tuple[Region, ...] = ()


_NOTHING = Kept()


class _Added(NamedTuple):
    """The kept entries, in lists that grow."""

    keys: list[str]
    files: list[int]
    captions: list[str]  # json
    kept: list[str]  # json of `Kept`, "" for nothing


class SourceTable:
    """Keys, captions and origin of the kept entries; the part both sources share."""

    name_first = False

    def __init__(self, files: tuple[str, ...]):
        self.files = self.origins = files
        self.remote = any(map(is_bucket, files))
        self.report = Report()
        self._added = _Added([], [], [], [])

    def _add(
        self, key: str, file: int, captions: list[str], annotations: Annotations = NOTHING
    ) -> None:
        self._added.keys.append(key)
        self._added.files.append(file)
        self._added.captions.append(json.dumps(captions))
        regions, wrong = placed(annotations.regions, None)
        for one in wrong:
            self.report.drop("unusable box", f"{key} in {self.files[file]}: {one}")
        captioned, images, group, _ = annotations
        kept = Kept(captioned, images, group, tuple(regions))
        self._added.kept.append(json.dumps(kept) if any(kept) else "")

    def _close(self, expected: str) -> None:
        """Packs the lists. Raises DataError where nothing is left."""
        keys, files, captions, kept = self._added
        if not keys:
            raise DataError(
                f"no usable pairs in {_some(self.files)}"
                + (f": {self.report.line()}" if self.report else ""),
                expected,
                "check data.train, data.val and data.holdout",
            )
        self._keys, self._captions = Strings(keys), Strings(captions)
        self._kept = Strings(kept if any(kept) else ())  # empty where no record has any
        self._file = np.asarray(files, np.int32)
        del self._added

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The name of the content: equal for the same picture in two files."""
        return self._keys[index]

    def file(self, index: int) -> str:
        """The json or tar the entry came from."""
        return self.files[self._file[index]]

    origin = file

    def identity(self) -> str:
        """Of the keys in their order."""
        return self._keys.digest()

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions as written in the file, without those that cleaning leaves empty."""
        return tuple(json.loads(self._captions[index]))

    def annotations(self, index: int) -> Kept:
        """What the file says of the picture beside its captions."""
        if not self._kept or not (found := self._kept[index]):
            return _NOTHING
        captions, images, group, regions = json.loads(found)
        return Kept(
            tuple(NegativeCaption(*one) for one in captions),
            tuple(images),
            group,
            read_regions(regions),
        )

    def negatives(self, index: int) -> tuple[tuple[NegativeCaption, ...], int]:
        """The negative captions and the number of negative pictures."""
        found = self.annotations(index)
        return found.negative_captions, len(found.negative_images)

    def group(self, index: int) -> str:
        """What variations of one picture have in common."""
        return self.annotations(index).group or source_of(self.key(index))

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        key, found = self.key(index), self.annotations(index)
        record = Record(key, self._image(index), self.captions(index), image_id_of(key))
        if found is _NOTHING:
            return record
        images = Files(partial(self._other_image, index), found.negative_images)
        return replace(
            record,
            negative_captions=found.negative_captions,
            negative_images=images,
            group=found.group,
            regions=found.regions,
        )

    def _image(self, index: int) -> bytes:
        raise NotImplementedError

    def _other_image(self, index: int, place: Any) -> bytes:
        """A negative picture of a record."""
        raise NotImplementedError


def _some(files: tuple[str, ...]) -> str:
    return files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")

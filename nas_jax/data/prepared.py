"""The records of a prepared folder, by index (`prepared_files` has its form)."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import OrderedDict
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from nas_jax.data.albef_source import AlbefJsonSource
from nas_jax.data.prepared_files import (
    GROUP,
    About,
    about_of,
    damaged,
    iter_about,
    negatives_in,
    open_shard,
    read_manifest,
    read_range,
)
from nas_jax.data.records import NegativeCaption, Record, source_of
from nas_jax.data.regions import read_regions
from nas_jax.data.sources import ALL, Report, Split
from nas_jax.data.tar_source import WebDatasetSource
from nas_jax.utils.errors import DataError

SAMPLES = {"webdataset", "files"}  # source.kind of tars, and of folders of the same files
_MAX_OPEN = 96  # shards open at a time in one process


class PreparedSource:
    """The records of a prepared folder, by index, in the order of its input.

    Nothing is held but the number of records of each shard and, with a holdout, the indices that
    are kept. Files are opened when first read, a bounded number at a time, and anew in each
    process.
    """

    remote = False

    def __init__(self, folder: str | os.PathLike, split: Split = ALL, clean: bool = True):
        """Args: the folder, and which keys to keep.

        clean: taken for uniformity. Captions of which cleaning leaves nothing were dropped when the
        folder was made.

        Raises:
          DataError: no prepared folder, a shard that is missing or not as long as the manifest
          says, or no record.
        """
        self.folder = str(folder)
        manifest = read_manifest(folder)
        shards = manifest["shards"]
        self.id, self.report = manifest["id"], Report()
        self.name_first = set(manifest["source"]["kind"].split("+")) <= SAMPLES
        self.files = tuple(os.path.join(self.folder, shard["file"]) for shard in shards)
        self.origins = tuple(shard["from"]["path"] for shard in shards)
        self._about_files = tuple(os.path.join(self.folder, shard["about"]) for shard in shards)
        for shard, path, about in zip(shards, self.files, self._about_files, strict=True):
            _check_size(path, shard["bytes"])
            _check_size(about, shard["about_bytes"])
        self._starts = np.cumsum([0, *(shard["records"] for shard in shards)], dtype=np.int64)
        self._kept = self._keep(split) if split.holdout else None
        if not len(self):
            raise DataError(
                f"no record in {self.folder}"
                + (f" for the {split.name} split" if split.holdout else ""),
                "at least one",
                "check data.holdout, and manifest.json for what was lost",
            )
        self._reset()

    def _keep(self, split: Split) -> np.ndarray:
        kept = (
            index
            for index, row in enumerate(iter_about(self.folder))
            if split.keeps(row.key, row.group)
        )
        return np.fromiter(kept, np.int32)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, ArrayRecordReader] = OrderedDict()
        self._block: tuple[int, list[bytes]] = (-1, [])  # the rows that were read last

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_lock", "_readers", "_block")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> Record:
        """Raises OSError where the shard is missing or its bytes have changed."""
        shard, position = self._locate(index)
        path = self.files[shard]
        record = self._unpack(read_range(self._reader(path), path, position, position + 1)[0], path)
        return Record(
            record["key"],
            record["image"],
            tuple(record["captions"]),
            record["id"],
            negatives_in(record),
            record.get("negative_images", ()),
            record.get("group", ""),
            read_regions(record.get("regions", ())),
        )

    def about(self, index: int) -> About:
        """What is known of a record, without reading its picture.

        Raises OSError as `__getitem__`.
        """
        shard, position = self._locate(index)
        path = self._about_files[shard]
        group = int(self._starts[shard]) + position - position % GROUP
        number, rows = self._block
        # neighbours are often read one after the other, and are compressed together
        if number != group:
            start = position - position % GROUP
            stop = min(start + GROUP, int(self._starts[shard + 1] - self._starts[shard]))
            rows = read_range(self._reader(path), path, start, stop)
            self._block = group, rows
        return about_of(rows[position % GROUP])

    def key(self, index: int) -> str:
        """The name of the content: equal for the same picture in two files."""
        return self.about(index).key

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions, without reading the picture."""
        return self.about(index).captions

    def negatives(self, index: int) -> tuple[tuple[NegativeCaption, ...], int]:
        """The negative captions and the number of negative pictures."""
        row = self.about(index)
        return row.negatives, row.negative_images

    def group(self, index: int) -> str:
        """What variations of one picture have in common."""
        row = self.about(index)
        return row.group or source_of(row.key)

    def file(self, index: int) -> str:
        """The shard it is in."""
        return self.files[self._locate(index)[0]]

    def origin(self, index: int) -> str:
        """The file that was prepared."""
        return self.origins[self._locate(index)[0]]

    def key_of(self, name: str) -> str:
        """The key of the picture that annotations call `name`, as in the prepared source."""
        return (WebDatasetSource if self.name_first else AlbefJsonSource).key_of(name)

    def identity(self) -> str:
        """The id of the folder; with a holdout, a digest of it and the kept indices."""
        if self._kept is None:
            return self.id
        return hashlib.blake2b(self.id.encode() + self._kept.tobytes(), digest_size=8).hexdigest()

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index = int(index) if self._kept is None else int(self._kept[index])
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def _reader(self, path: str) -> ArrayRecordReader:
        with self._lock:
            if path not in self._readers:
                self._readers[path] = open_shard(path)
                if len(self._readers) > _MAX_OPEN:
                    # closed when no other thread reads from it any more
                    self._readers.popitem(last=False)
            self._readers.move_to_end(path)
            return self._readers[path]

    @staticmethod
    def _unpack(data: bytes, path: str) -> dict[str, Any]:
        try:
            return msgpack.unpackb(data)
        except ValueError as error:
            raise OSError(errno.EIO, f"a record that cannot be read: {error}", path) from error


def _check_size(path: str, size: int) -> None:
    try:
        found = os.path.getsize(path)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    if found != size:
        raise damaged(path, f"{found} bytes, but {size} in the manifest")

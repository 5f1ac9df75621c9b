"""The prepared data set: a folder of ArrayRecord shards and its manifest.

    manifest.json             what is in it, what was lost and why; only there when all is complete
    pairs-00000.arrayrecord   one msgpack map a picture: key, id, captions, image (the bytes of an
                              encoded file); where there are any: negatives [[text, kind, of]],
                              negative_images, group, regions [[[x, y, width, height], phrase]]
    about-00000.arrayrecord   beside each: key, id, captions, width, height, sha, phash; where there
                              are any: negatives, the number of negative_images and negative_hashes
                              [[sha, phash]], group; read without any picture
    losses.jsonl              one line a loss: reason, name, file, detail

`python -m nas_jax.data.prepare` writes it. Reading is random access, and memory does not grow with
the data set.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from nas_jax.data.albef_source import AlbefJsonSource
from nas_jax.data.config import cache_for
from nas_jax.data.records import NegativeCaption, Record, Region, source_of
from nas_jax.data.regions import read_regions
from nas_jax.data.sources import ALL, Report, Split
from nas_jax.data.tar_source import WebDatasetSource
from nas_jax.storage.paths import is_bucket, join
from nas_jax.storage.reading import files_below, is_dir, is_file, read_bytes
from nas_jax.utils.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
LOSSES = "losses.jsonl"
UNITS = ".units"  # what each shard adds to the manifest, kept so that an interrupted run goes on
SAMPLES = {"webdataset", "files"}  # source.kind of tars, and of folders of the same files

_GROUP = 64  # rows of an about file that are compressed together
_MAX_OPEN = 96  # shards open at a time in one process
# No read-ahead and no threads in the reader: each read is one record somewhere.
_RANDOM = "readahead_buffer_size:0,max_parallelism:0"


class About(NamedTuple):
    """What is known of a record without its picture."""

    key: str
    image_id: int
    captions: tuple[str, ...]
    width: int  # of the stored picture, turned upright
    height: int
    sha: bytes  # exact hash of the file as it came, before any re-encoding
    phash: bytes  # perceptual hash, see nas_jax/data/overlap.py
    negatives: tuple[NegativeCaption, ...] = ()
    negative_images: int = 0  # how many there are
    group: str = ""
    negative_hashes: tuple[tuple[bytes, bytes], ...] = ()  # of each of these: sha and phash


def pairs_name(number: int) -> str:
    """File name of shard `number`."""
    return f"pairs-{number:05d}.arrayrecord"


def about_name(number: int) -> str:
    """File name of the rows beside shard `number`."""
    return f"about-{number:05d}.arrayrecord"


class ShardWriter:
    """Writes one shard and its about file; `close` ends both. The same records give the same bytes.

    Raises OSError where a file cannot be written, as on a full disk.
    """

    def __init__(self, pairs: str | None, about: str):
        """pairs: None writes the about file only."""
        self._about_path, self._pairs_path = about, pairs
        # pictures are packed
        self._pairs = ArrayRecordWriter(pairs, "group_size:1,uncompressed") if pairs else None
        self._about = ArrayRecordWriter(about, f"group_size:{_GROUP}")

    def write(
        self,
        row: About,
        image: bytes,
        negative_images: Sequence[bytes] = (),
        regions: Sequence[Region] = (),
    ) -> None:
        """Adds a record."""
        fields = {"key": row.key, "id": row.image_id, "captions": list(row.captions)}
        rest = {"width": row.width, "height": row.height, "sha": row.sha, "phash": row.phash}
        # what a record lacks is not written, so that it has the bytes of older versions
        further = {"negatives": [list(one) for one in row.negatives], "group": row.group}
        fields |= {name: value for name, value in further.items() if value}
        images = {"negative_images": list(negative_images)} if negative_images else {}
        images |= {"regions": [list(one) for one in regions]} if regions else {}
        counts = {"negative_images": len(negative_images)} if negative_images else {}
        hashes = [list(pair) for pair in row.negative_hashes]
        counts |= {"negative_hashes": hashes} if hashes else {}
        try:
            if self._pairs:
                self._pairs.write(msgpack.packb(fields | {"image": image} | images))
            self._about.write(msgpack.packb(fields | rest | counts))
        except RuntimeError as error:
            raise _write_error(error, self._pairs_path or self._about_path) from error

    def close(self) -> None:
        """Writes what is buffered. A second call does nothing."""
        for writer in (self._pairs, self._about):
            try:
                if writer and writer.is_open():
                    writer.close()
            except RuntimeError as error:
                raise _write_error(error, self._pairs_path or self._about_path) from error


def _write_error(error: RuntimeError, path: str) -> OSError:
    what = str(error).split(";")[0]
    return OSError(errno.EIO, what, path)


def is_prepared(path: str | os.PathLike) -> bool:
    """Whether the folder holds a finished prepared data set."""
    return is_file(os.path.join(path, MANIFEST))


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a prepared folder, which may be in a bucket.

    Raises:
      DataError: no such folder, not prepared or not finished, damaged, or of another format.
    """
    path = os.path.join(folder, MANIFEST)
    if not is_file(path):
        if is_dir(os.path.join(folder, UNITS)):
            raise DataError(
                f"{folder} is not finished: {MANIFEST} is missing",
                "a folder whose preparation has ended",
                "run the same command of nas_jax.data.prepare again; it goes on where it stopped",
            )
        what = "no manifest.json" if is_dir(os.fspath(folder)) else "no such folder"
        raise DataError(
            f"{folder}: {what}",
            "a prepared folder",
            "make one with python -m nas_jax.data.prepare INPUT --out DIR",
        )
    try:
        content = read_bytes(path)
    except OSError as error:
        raise DataError(f"{path}: {error}", "a manifest", "prepare the folder again") from error
    try:
        manifest = json.loads(content.decode())
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: {error}", "a manifest", "prepare the folder again") from error
    if found != FORMAT:
        raise DataError(
            f"{path} of format {found}",
            f"format {FORMAT}",
            "prepare the data again with this version",
        )
    return manifest


def local_folder(folder: str, cache: str) -> str:
    """The folder, or the copy of one in a bucket, made below the local `cache` if it is missing.

    Raises:
      ConfigError: a bucket and no cache.
      DataError: those of read_manifest and Cache.copy_folder; a file that is missing or not as
      long as it was.
    """
    if not is_bucket(folder):
        return os.path.expanduser(folder)
    kept = cache_for(folder, cache)
    manifest = read_manifest(folder)
    sizes = {shard["file"]: shard["bytes"] for shard in manifest["shards"]}
    sizes |= {shard["about"]: shard["about_bytes"] for shard in manifest["shards"]}
    found = files_below(folder)
    for name, size in sizes.items():  # before hours of copying
        if name not in found:
            raise damaged(join(folder, name), "missing")
        if found[name].size != size:
            raise damaged(
                join(folder, name), f"{found[name].size} bytes, but {size} in the manifest"
            )
    local = kept.copy_folder(folder, sizes, manifest["id"])
    content = json.dumps(manifest, indent=1, ensure_ascii=False)
    kept.keep(Path(local, MANIFEST), content.encode())
    return local


def count_records(path: str | os.PathLike) -> int:
    """Records of an ArrayRecord file, of either kind. Raises OSError where it is damaged."""
    reader = _open(path)
    count = reader.num_records()
    reader.close()
    return count


def read_about(path: str | os.PathLike) -> Iterator[About]:
    """The rows of one about file. Raises OSError where it is damaged."""
    reader = _open(path)
    count = reader.num_records()
    for start in range(0, count, _GROUP):
        for data in _read(reader, str(path), start, min(count, start + _GROUP)):
            yield _row(data)
    reader.close()


def iter_about(folder: str | os.PathLike) -> Iterator[About]:
    """The rows of all records in their order.

    Raises DataError where the folder is not prepared or a file damaged.
    """
    for shard in read_manifest(folder)["shards"]:
        path = Path(folder, shard["about"])
        try:
            yield from read_about(path)
        except OSError as error:
            raise damaged(path, str(error)) from error


def iter_records(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The maps of one shard (key, id, captions, image). Raises OSError where it is damaged."""
    reader = _open(path)
    for index in range(reader.num_records()):
        yield msgpack.unpackb(_read(reader, str(path), index, index + 1)[0])
    reader.close()


def damaged(path: str | os.PathLike, detail: str) -> DataError:
    """The error for a file of a prepared folder that is not as it was written."""
    return DataError(
        f"{path}: {detail}",
        "the file as it was written",
        "copy it again, or delete it and the manifest and run nas_jax.data.prepare again; "
        "--verify checks all shards",
    )


def _open(path: str | os.PathLike) -> ArrayRecordReader:
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    reader = ArrayRecordReader(str(path), _RANDOM)
    if not reader.ok():
        raise OSError(errno.EIO, "no whole ArrayRecord file", str(path))
    return reader


def _read(reader: ArrayRecordReader, path: str, start: int, stop: int) -> list[bytes]:
    try:
        return reader.read(start, stop) if stop - start > 1 else reader.read([start])
    except (RuntimeError, ValueError, IndexError) as error:
        raise OSError(errno.EIO, " ".join(str(error).split()), path) from error


def _row(data: bytes) -> About:
    row = msgpack.unpackb(data)
    return About(
        row["key"],
        row["id"],
        tuple(row["captions"]),
        row["width"],
        row["height"],
        row["sha"],
        row["phash"],
        _negatives(row),
        row.get("negative_images", 0),
        row.get("group", ""),
        tuple(map(tuple, row.get("negative_hashes", ()))),
    )


def _negatives(row: dict[str, Any]) -> tuple[NegativeCaption, ...]:
    return tuple(NegativeCaption(*one) for one in row.get("negatives", ()))


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
        record = self._unpack(_read(self._reader(path), path, position, position + 1)[0], path)
        return Record(
            record["key"],
            record["image"],
            tuple(record["captions"]),
            record["id"],
            _negatives(record),
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
        group = int(self._starts[shard]) + position - position % _GROUP
        number, rows = self._block
        # neighbours are often read one after the other, and are compressed together
        if number != group:
            start = position - position % _GROUP
            stop = min(start + _GROUP, int(self._starts[shard + 1] - self._starts[shard]))
            rows = _read(self._reader(path), path, start, stop)
            self._block = group, rows
        return _row(rows[position % _GROUP])

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
                self._readers[path] = _open(path)
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
        raise damaged(path, error.strerror) from error
    if found != size:
        raise damaged(path, f"{found} bytes, but {size} in the manifest")

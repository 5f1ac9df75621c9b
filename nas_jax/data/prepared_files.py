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
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from nas_jax.data.config import cache_for
from nas_jax.data.records import NegativeCaption, Region
from nas_jax.storage.paths import is_bucket, join
from nas_jax.storage.reading import files_below, is_dir, is_file, read_bytes
from nas_jax.utils.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
LOSSES = "losses.jsonl"
UNITS = ".units"  # what each shard adds to the manifest, kept so that an interrupted run goes on

GROUP = 64  # rows of an about file that are compressed together
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
        self._about = ArrayRecordWriter(about, f"group_size:{GROUP}")

    def write(
        self,
        row: About,
        image: bytes,
        negative_images: Sequence[bytes] = (),
        regions: Sequence[Region] = (),
    ) -> None:
        """Adds a record."""
        fields: dict[str, Any] = {"key": row.key, "id": row.image_id, "captions": [*row.captions]}
        rest = {"width": row.width, "height": row.height, "sha": row.sha, "phash": row.phash}
        # what a record lacks is not written, so that it has the bytes of older versions
        further = {"negatives": [list(one) for one in row.negatives], "group": row.group}
        fields |= {name: value for name, value in further.items() if value}
        images: dict[str, Any] = {}
        counts: dict[str, Any] = {}
        if negative_images:
            images["negative_images"] = list(negative_images)
            counts["negative_images"] = len(negative_images)
        if regions:
            images["regions"] = [list(one) for one in regions]
        if row.negative_hashes:
            counts["negative_hashes"] = [list(pair) for pair in row.negative_hashes]
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
    reader = open_shard(path)
    count = reader.num_records()
    reader.close()
    return count


def read_about(path: str | os.PathLike) -> Iterator[About]:
    """The rows of one about file. Raises OSError where it is damaged."""
    reader = open_shard(path)
    count = reader.num_records()
    for start in range(0, count, GROUP):
        for data in read_range(reader, str(path), start, min(count, start + GROUP)):
            yield about_of(data)
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
    reader = open_shard(path)
    for index in range(reader.num_records()):
        yield msgpack.unpackb(read_range(reader, str(path), index, index + 1)[0])
    reader.close()


def damaged(path: str | os.PathLike, detail: str) -> DataError:
    """The error for a file of a prepared folder that is not as it was written."""
    return DataError(
        f"{path}: {detail}",
        "the file as it was written",
        "copy it again, or delete it and the manifest and run nas_jax.data.prepare again; "
        "--verify checks all shards",
    )


def open_shard(path: str | os.PathLike) -> ArrayRecordReader:
    """A reader of an ArrayRecord file. Raises OSError where there is none that is whole."""
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    reader = ArrayRecordReader(str(path), _RANDOM)
    if not reader.ok():
        raise OSError(errno.EIO, "no whole ArrayRecord file", str(path))
    return reader


def read_range(reader: ArrayRecordReader, path: str, start: int, stop: int) -> list[bytes]:
    """The records from start to stop. Raises OSError where they are damaged."""
    try:
        return reader.read(start, stop) if stop - start > 1 else reader.read([start])
    except (RuntimeError, ValueError, IndexError) as error:
        raise OSError(errno.EIO, " ".join(str(error).split()), path) from error


def about_of(data: bytes) -> About:
    """A row of an about file."""
    row = msgpack.unpackb(data)
    return About(
        row["key"],
        row["id"],
        tuple(row["captions"]),
        row["width"],
        row["height"],
        row["sha"],
        row["phash"],
        negatives_in(row),
        row.get("negative_images", 0),
        row.get("group", ""),
        tuple(map(tuple, row.get("negative_hashes", ()))),
    )


def negatives_in(row: dict[str, Any]) -> tuple[NegativeCaption, ...]:
    """The negative captions of a record as it is stored."""
    return tuple(NegativeCaption(*one) for one in row.get("negatives", ()))

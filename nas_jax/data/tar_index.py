"""Where the members of a WebDataset tar are: from its headers, without unpacking anything.

In a bucket the captions are read on the way, as their members lie between the headers. An index of
10,000 members costs some 20 requests where pictures are small (the tar is read in blocks of up to 8
MB), and one a picture of more than half a megabyte. With a cache it is kept there under the version
of the object, and costs one request from then on.
"""

from __future__ import annotations

import os
import tarfile
from typing import NamedTuple

import msgpack
from absl import logging

from nas_jax.data.config import cache_for
from nas_jax.data.tar_names import Samples, is_text, split_name, with_last_dots
from nas_jax.storage.paths import is_bucket
from nas_jax.storage.reading import RangedFile, stat
from nas_jax.utils.errors import DataError

_BLOCK = 512  # bytes; a tar ends with a block of zeros
_FORMAT = 2  # of kept indices
_ODD = "surrogatepass"  # names of members need not be UTF-8

Place = tuple[int, int]  # offset and size in the tar


class Index(NamedTuple):
    """The members of one tar."""

    members: Samples[Place]  # in their order
    texts: dict[Place, bytes]  # what has been read already; {} for files


def index_tar(path: str, cache: str = "") -> Index:
    """The index of a tar; `cache` is a local folder for those of buckets, "" for none.

    Raises DataError where it is missing, cut short, compressed or no tar, or holds a name twice.
    """
    try:
        if not is_bucket(path):
            # "r:" refuses compressed files, of which no slice can be read
            with tarfile.open(path, "r:") as tar:
                return _walk(path, tar, os.path.getsize(path), read_texts=False)
        return _kept(path, cache) if cache else _walk_object(RangedFile(path))
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{path}: {error}",
            "a whole, uncompressed tar",
            "copy or unpack the file again, or save what is whole with python -m "
            "nas_jax.data.prepare",
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}", "a readable file", "check data.train and data.val"
        ) from error


def _walk(path: str, tar: tarfile.TarFile, size: int, read_texts: bool) -> Index:
    members: Samples[Place] = {}
    texts: dict[Place, bytes] = {}
    end = 0
    for member in tar:
        end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
        if end > size:
            raise tarfile.ReadError(f"member {member.name!r} is cut off")
        if not member.isreg() or os.path.basename(member.name).startswith("."):
            continue
        key, suffix = split_name(member.name)
        parts = members.setdefault(key, {})
        if suffix.lower() in parts:
            raise DataError(
                f"{path} with two members {member.name!r}",
                "one file of a name",
                "give the samples keys of their own",
            )
        place = parts[suffix.lower()] = (member.offset_data, member.size)
        if read_texts and is_text(suffix.lower()):
            tar.fileobj.seek(member.offset_data)
            texts[place] = tar.fileobj.read(member.size)
    if size < end + _BLOCK:
        raise tarfile.ReadError("the end mark is missing")
    return Index(with_last_dots(members), texts)


def _walk_object(file: RangedFile) -> Index:
    # the stub asks for write() and close() too, which reading does not call
    with tarfile.open(fileobj=file, mode="r:") as tar:  # type: ignore[call-overload]
        return _walk(file.path, tar, file.stat.size, read_texts=True)


def _kept(path: str, cache: str) -> Index:
    """From the cache, or made and put there."""
    about, kept = stat(path), cache_for(path, cache)
    place = kept.place_of(path).with_name(f"{os.path.basename(path)}.{about.version}.index")
    try:
        found = msgpack.unpackb(
            place.read_bytes(), use_list=False, strict_map_key=False, unicode_errors=_ODD
        )
        if found["format"] == _FORMAT and found["size"] == about.size:
            return Index(found["members"], found["texts"])
        logging.warning("%s is of another format; it is made again", place)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.warning("%s cannot be used (%s); it is made again", place, error)
    index = _walk_object(RangedFile(path))
    content = {"format": _FORMAT, "size": about.size, **index._asdict()}
    kept.keep(place, msgpack.packb(content, unicode_errors=_ODD))
    return index

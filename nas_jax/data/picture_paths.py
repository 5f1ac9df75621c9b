"""Where the pictures of a list are: below a folder or in a zip, under paths of another machine."""

from __future__ import annotations

import errno
import os
import shlex
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from nas_jax.utils.errors import DataError

TRIED = 50  # pictures that are looked for: the first, and of each doubling of a list
_LOOKED_FOR = 3  # of these, where the root is wrong


class Pictures:
    """Reads the pictures that a list names."""

    def __init__(self, root: str, strip: str = ""):
        """root: a folder or a zip file.

        strip: what paths begin with on the machine that the list is from; it is taken off.

        Raises DataError for a zip that cannot be read.
        """
        self._root, self._strip = root, _slashed(strip)
        self._zip = _open_zip(root) if is_zip(root) else None

    def name(self, image: str) -> str:
        """The path from the root. Paths as Windows writes them are read with / for \\."""
        return _slashed(image).removeprefix(self._strip) if self._strip else _slashed(image)

    def read(self, image: str) -> bytes:
        """The bytes of a picture. Raises OSError, and ValueError for a NUL in the path."""
        name = self.name(image)
        return self._zip.read(name) if self._zip else Path(self._root, name).read_bytes()

    def has(self, image: str) -> bool:
        """Whether the picture is there."""
        if self._zip:
            return self._zip.find(self.name(image)) is not None
        try:
            return os.path.exists(os.path.join(self._root, self.name(image)))
        except ValueError:  # a NUL in the path
            return False


def _slashed(path: str) -> str:
    return path.replace("\\", "/") if "\\" in path and "/" not in path else path


def is_zip(path: str) -> bool:
    """Whether this is a zip file."""
    return os.path.isfile(path) and zipfile.is_zipfile(path)


class _Zip:
    """A zip file, whose members are found by the path in the list.

    That is the name of the member, or one of them is the end of the other: zips are made with and
    without the folder around the pictures.
    """

    def __init__(self, path: str):
        self._path, self._file = path, zipfile.ZipFile(path)
        self._by_name: dict[str, list[str]] = {}
        for name in self._file.namelist():
            self._by_name.setdefault(name.rpartition("/")[2], []).append(name)

    def find(self, name: str) -> str | None:
        """The member of a picture."""
        known = self._by_name.get(name.rpartition("/")[2], ())
        if name in known:
            return name
        found = [
            other for other in known if other.endswith("/" + name) or name.endswith("/" + other)
        ]
        return found[0] if len(found) == 1 else None

    def read(self, name: str) -> bytes:
        """Raises OSError."""
        member = self.find(name)
        if member is None:
            raise FileNotFoundError(errno.ENOENT, f"not in {self._path}", name)
        try:
            return self._file.read(member)
        # a wrong checksum; a damaged stream; a method that is not known; a password
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise OSError(errno.EIO, str(error), name) from error


@lru_cache(maxsize=2)
def _open_zip(path: str) -> _Zip:
    try:
        return _Zip(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: {error}", "a whole zip file", "copy it again") from error


def check_some_exist(path: str, root: str, strip: str, images: Iterable[str | None]) -> None:
    """Dead paths are losses; where none of those that are tried exists, the root is wrong.

    images: all of the list, None for one that needs no file. The first TRIED are looked for, then
    as many of each doubling of the list: where one is there, the rest is not read.

    Raises DataError, which says where they are if they lie near the list.
    """
    pictures, tried = Pictures(root, strip), []
    for image in _ever_fewer(images):
        if image is None or pictures.has(image):
            return
        tried.append(image)
    if not tried:
        return
    raise DataError(
        f"none of {len(tried)} pictures that were looked for of {path}, not even "
        f"{os.path.join(root, pictures.name(tried[0]))!r}",
        "picture paths that start from --image-root, a folder or a zip file",
        f"pass {flags_for(path, root, tried)}",
    )


def _ever_fewer(images: Iterable[str | None]) -> Iterator[str | None]:
    """The first TRIED; of the next as many all, of the next 2 TRIED each second, and so on."""
    for number, image in enumerate(images):
        if number % (1 << max(0, (number // TRIED).bit_length() - 1)) == 0:
            yield image


def flags_for(path: str, root: str, images: Sequence[str]) -> str:
    """The flags of prepare with which the pictures of the list `path` are found.

    Where they do not lie near the list, what these flags have to name.
    """
    if place := find_root(path, root, images):
        return " ".join(
            f"{flag} {shlex.quote(value)}"
            for flag, value in zip(("--image-root", "--strip"), place, strict=True)
            if value
        )
    first = _slashed(images[0])
    parts = [part for part in first.split("/") if part]
    # A path from the root of a disk, of this kind of machine or of another.
    if not first.startswith("/") and first[1:3] != ":/":
        return f"--image-root FOLDER, the one that holds {(parts or [first])[0]!r}"
    inner = "/".join(parts[-2:])
    prefix = shlex.quote(first.removesuffix(inner))
    return f"--image-root FOLDER, the one that holds {inner!r}, and --strip {prefix}"


def find_root(path: str, root: str, images: Sequence[str]) -> tuple[str, str] | None:
    """A root under which the first pictures are found, and what to strip from their paths for it.

    Tried are the paths and their ends: beside the list, in the root, in the folders and zip files
    there, and in the folder around the list. More than half of the pictures have to be found:
    names like 0.jpg are everywhere.
    """
    names = [_slashed(image) for image in images[:_LOOKED_FOR]]
    for place in _places(os.path.dirname(path) or ".", root or "."):
        pictures = Pictures(place)
        found = [end for name in names if (end := _end_in(pictures, name))]
        if 2 * len(found) > len(names):
            name = next(name for name in names if name.endswith(found[0]))
            return place, "" if is_zip(place) else name.removesuffix(found[0])
    return None


def _end_in(pictures: Pictures, name: str) -> str:
    """The longest end of a path that is there, "" if none is."""
    parts = [part for part in name.split("/") if part]
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if pictures.has(end)), "")


def _places(*folders: str) -> Iterator[str]:
    for folder in dict.fromkeys(folders):
        try:
            with os.scandir(folder) as entries:
                inner = sorted(entry.path for entry in entries if not entry.name.startswith("."))
        except OSError:
            continue
        yield folder
        yield from (place for place in inner if os.path.isdir(place))
        yield from (place for place in inner if place.lower().endswith(".zip") and is_zip(place))
    yield os.path.dirname(os.path.abspath(folders[0]))

"""Pictures of a benchmark: found by name, cropped, resized, and tried once so that none is skipped
in silence.
"""

from __future__ import annotations

import errno
import os
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from nas_jax.data.image_ops import ImageError, decode, resize
from nas_jax.data.tar_names import IMAGE_SUFFIXES
from nas_jax.evals.benchmarks.reading import Unusable
from nas_jax.utils.errors import DataError

# tried in this order where an annotation names no suffix
SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
CACHE_BYTES = 512 * 2**20  # decoded pictures up to this many bytes stay in memory
_BLOCK = 256  # pictures that are decoded side by side


@dataclass(frozen=True)
class PictureRef:
    """A picture as annotations name it."""

    name: str  # file name, with or without folders and suffix
    # left, top, width, height of the part that is shown, pixels
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Place:
    """Where the bytes of a file are: a whole file where `size` is negative, else a member of a
    tar.
    """

    path: str
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class _Packed:
    """A member of a zip file. Several threads may read from one."""

    file: zipfile.ZipFile
    name: str

    def read(self) -> bytes:
        try:
            return self.file.read(self.name)
        # a wrong checksum; a damaged stream; a method that is not known; a password
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise OSError(errno.EIO, str(error), self.name) from error


Table = dict[str, list[tuple[str, Place | _Packed]]]
"""Name in lower case, or the number that it is -> (name as it is, where the bytes are)."""


class Pictures(Protocol):
    """Pictures by name."""

    def read(self, name: str) -> bytes | np.ndarray:
        """An encoded file, or pixels, uint8 (H, W, 3)."""
        ...


class Files:
    """Files by name: at the path that is asked for, else anywhere under the folder, else in its
    tars, else in its zip files.

    Annotations come with the folders of the machine they were made on, so the last part of a name
    (and of two files with the same one, the last two parts) is enough. Where no name is the same,
    one that differs in upper and lower case is, and for a number one with zeros in front of it.
    """

    def __init__(self, folder: Path, tars: Sequence[Path] | None = None):
        """Args: `folder` is searched with its subfolders; `tars` default to the *.tar files
        directly in it.
        """
        self._folder = folder
        self._tars = sorted(folder.glob("*.tar")) if tars is None else list(tars)

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises Unusable where there is none, or several that could be meant.
        """
        try:
            return self.place(name).read()
        except OSError as error:
            raise Unusable("unreadable file", name) from error

    def place(self, name: str) -> Place | _Packed:
        """Where a file is. Raises Unusable as `read`."""
        name = name.replace("\\", "/") if "/" not in name else name
        names = (
            [name]
            if os.path.splitext(name)[1].lower() in SUFFIXES
            else [name + suffix for suffix in SUFFIXES]
        )
        names += [str(int(name))] if name.isdecimal() else []
        for candidate in names:
            for path in (self._folder / candidate, self._folder / "images" / candidate):
                if path.is_file():
                    return Place(str(path))
        for table in (self._in_folder, self._in_tars, self._in_zips):
            for candidate in names:
                parts = Path(candidate).parts
                for key in ("/".join(parts[-2:]), parts[-1]):
                    found = table.get(key.lower(), ())
                    same = [place for known, place in found if known == key]
                    places = same or [place for _, place in found]
                    if len(places) > 1:
                        raise Unusable("several files of one name", name)
                    if places:
                        return places[0]
        raise Unusable("missing picture", name)

    @cached_property
    def _in_folder(self) -> Table:
        table: Table = {}
        seen = set()  # links may form a circle
        for folder, subfolders, files in os.walk(self._folder, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            for name in files:
                if os.path.splitext(name)[1].lower() in SUFFIXES:
                    _enter(
                        table,
                        f"{os.path.basename(folder)}/{name}",
                        Place(os.path.join(folder, name)),
                    )
        return table

    @cached_property
    def _in_tars(self) -> Table:
        table: Table = {}
        for path in self._tars:
            try:
                # "r:" refuses compressed files, of which no part can be read
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        if member.isreg():
                            name = _with_folder(path, member.name)
                            _enter(table, name, Place(str(path), member.offset_data, member.size))
            except (tarfile.TarError, OSError) as error:
                raise DataError(
                    f"{path}: {error}", "a whole, uncompressed tar", "copy or unpack it again"
                ) from error
        return table

    @cached_property
    def _in_zips(self) -> Table:
        table: Table = {}
        for path in sorted(self._folder.glob("*.zip")):
            try:
                file = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{path}: {error}", "a whole zip file", "copy it again") from error
            for name in file.namelist():
                if os.path.splitext(name)[1].lower() in SUFFIXES:
                    _enter(table, _with_folder(path, name), _Packed(file, name))
        return table


def _with_folder(path: Path, member: str) -> str:
    return member if "/" in member else f"{path.stem}/{member}"


def _enter(table: Table, name: str, place: Place | _Packed) -> None:
    parts = name.split("/")
    for key in ("/".join(parts[-2:]), parts[-1]):
        table.setdefault(key.lower(), []).append((key, place))
    if (stem := os.path.splitext(parts[-1])[0]).isdecimal():
        table.setdefault(str(int(stem)), []).append((parts[-1], place))


class Gallery(Sequence):
    """Pictures by index: decoded, cropped and resized when asked for, uint8 (size, size, 3)."""

    def __init__(
        self,
        files: Pictures,
        pictures: Sequence[PictureRef],
        size: int,
        value_range: tuple[float, ...] = (),
    ):
        """Tries every picture once, several at a time. value_range: see `decode`.

        `failures`: index -> why it cannot be shown.
        """
        self._files, self._pictures, self._size = files, list(pictures), size
        self._range = value_range
        self._cache: dict[int, np.ndarray] = {}
        self.failures: dict[int, Unusable] = {}
        room = CACHE_BYTES // (size * size * 3)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            # in blocks, so that few are held at a time
            for start in range(0, len(self._pictures), _BLOCK):
                block = range(start, min(start + _BLOCK, len(self._pictures)))
                for index, result in zip(block, pool.map(self._try, block), strict=True):
                    if isinstance(result, Unusable):
                        self.failures[index] = result
                    elif len(self._cache) < room:
                        self._cache[index] = result

    def _try(self, index: int) -> np.ndarray | Unusable:
        try:
            return self._read(index)
        except Unusable as error:
            return error

    def _read(self, index: int) -> np.ndarray:
        picture = self._pictures[index]
        try:
            image_HxWx3 = decode(self._files.read(picture.name), self._range)
        except ImageError as error:
            raise Unusable(error.reason, f"{picture.name}: {error.detail}") from error
        return resize(
            image_HxWx3 if picture.box is None else crop(image_HxWx3, picture.box), self._size
        )

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        return self._cache[index] if index in self._cache else self._read(index)


class NoPictures(Sequence):
    """Stands for pictures that were not asked for, where only annotations are needed."""

    failures: dict[int, Unusable] = {}

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        raise DataError(
            "a benchmark loaded without pictures", "an image_size", "load it with an image size"
        )


def crop(image_HxWx3: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The part of a picture inside (left, top, width, height); black where the box leaves it, as
    Pillow crops.
    """
    left, top, width, height = box
    return np.asarray(Image.fromarray(image_HxWx3).crop((left, top, left + width, top + height)))

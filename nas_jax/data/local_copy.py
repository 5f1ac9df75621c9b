"""Copies of folders in a bucket, as ArrayRecord files can only be read from a disk.

    CACHE/BUCKET/PATH/VERSION/

CACHE is the local folder data.cache. VERSION is the id in the manifest of a prepared folder, and a
digest of the files of any other. Each file appears whole, under its name; of several processes of a
machine one copies and the others wait. A later run finds the files and copies what is missing or
not of the right size.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from absl import logging

from nas_jax.data import storage
from nas_jax.utils.errors import ConfigError, DataError

_PIECE = 16 * 2**20  # bytes of one request
_THREADS = 8  # files that are copied at a time, so a machine holds 128 MB of pieces
_TELL_SECONDS = 15.0  # between two lines of progress
_PART = ".part"  # ends the name of a file that is not whole


def check_cache(cache: str, path: str) -> None:
    """Raises ConfigError where data.cache is not set, for a `path` in a bucket that needs it."""
    if not cache:
        raise ConfigError(
            f"{path} without data.cache",
            "a local folder for its copy, as ArrayRecord files cannot be read in a bucket",
            "set data.cache to a folder with room for it, or mount the bucket (docs/launch.md)",
        )


def place_of(path: str, cache: str) -> Path:
    """Where in the cache the copy of a path in a bucket is."""
    parts = [
        part for part in path.removeprefix(storage.BUCKET).split("/") if part not in ("", ".", "..")
    ]
    return Path(os.path.abspath(os.path.expanduser(cache)), *parts)


def digest(files: Mapping[str, storage.Stat]) -> str:
    """16 hexadecimal digits that change with any file."""
    return hashlib.blake2b(repr(sorted(files.items())).encode(), digest_size=8).hexdigest()


def copy_folder(folder: str, sizes: Mapping[str, int], cache: str, version: str) -> str:
    """Copies files of a folder in a bucket (name -> bytes) that are missing. Returns the copy.

    Raises:
      DataError: no room, no permission to write, a file that is missing in the bucket or of another
        size, or a bucket that refuses or does not answer. What was copied whole stays.
    """
    target = place_of(folder, cache) / version
    if not _missing(target, sizes):
        return str(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if missing := _missing(target, sizes):  # another process may have copied them
                for left in target.rglob(f"*{_PART}"):
                    left.unlink()
                _check_room(folder, target, missing)
                _copy(folder, target, missing)
    except OSError as error:
        raise DataError(
            f"{error.filename or target}: {error.strerror}",
            "a folder to write to",
            "set data.cache to another folder",
        ) from error
    return str(target)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it is whole or not there.

    Raises DataError where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part_of(path)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}",
            "a folder to write to",
            "make room, or set data.cache to another folder",
        ) from error


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{_PART}")


def _missing(target: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    def is_there(name: str, size: int) -> bool:
        try:
            return os.path.getsize(target / name) == size
        except OSError:
            return False

    return {name: size for name, size in sizes.items() if not is_there(name, size)}


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process of the machine at a time; the system lets go where one is killed."""
    with open(target / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.info("another process copies to %s; waiting for it", target)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            logging.warning(
                "%s cannot be locked (%s): several processes copy the same", target, error.strerror
            )
        yield


def _check_room(folder: str, target: Path, missing: Mapping[str, int]) -> None:
    need, free = sum(missing.values()), shutil.disk_usage(target).free
    if need > free:
        raise DataError(
            f"{folder}, of which {need / 1e9:.1f} GB are to be copied, with {free / 1e9:.1f} GB "
            f"free in {target}",
            "room for it",
            "set data.cache to a larger disk, or mount the bucket (docs/launch.md)",
        )


def _copy(folder: str, target: Path, missing: Mapping[str, int]) -> None:
    logging.info(
        "copying %d files, %.2f GB, of %s to %s",
        len(missing),
        sum(missing.values()) / 1e9,
        folder,
        target,
    )
    progress = _Progress(folder, sum(missing.values()))
    stop = threading.Event()

    def copy(file: tuple[str, int]) -> None:
        name, size = file
        _copy_file(storage.join(folder, name), target / name, size, progress.add, stop)

    with ThreadPoolExecutor(_THREADS, "copy") as pool:  # at whose end no thread writes any more
        try:
            for done in [pool.submit(copy, file) for file in missing.items()]:
                done.result()
        except BaseException:  # Ctrl-C too: what is under way is not copied to the end
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    logging.info("copied %s in %.0f s", folder, progress.seconds())


def _copy_file(
    path: str, to: Path, size: int, tell: Callable[[int], None], stop: threading.Event
) -> None:
    part = _part_of(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "wb") as file:
            for offset in range(0, size, _PIECE):
                if stop.is_set():
                    return
                data = _read(path, offset, min(_PIECE, size - offset))
                file.write(data)
                tell(len(data))
        os.replace(part, to)
    finally:
        part.unlink(missing_ok=True)


def _read(path: str, offset: int, size: int) -> bytes:
    try:
        data = storage.read_bytes(path, offset, size)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: {error.strerror}", "the whole folder", "copy it to the bucket again"
        ) from error
    if len(data) != size:
        raise DataError(
            f"{path}: shorter than it was", "a folder that nobody writes to", "start again"
        )
    return data


class _Progress:
    """Counts bytes, and says now and then how far it is."""

    def __init__(self, folder: str, total: int):
        self._folder, self._total, self._done = folder, total, 0
        self._start = self._told = time.monotonic()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many bytes more."""
        with self._lock:
            self._done += count
            if time.monotonic() - self._told >= _TELL_SECONDS:
                self._told = time.monotonic()
                share, rate = 100 * self._done / self._total, self._done / self.seconds() / 1e6
                logging.info("copied %.0f %% of %s, %.0f MB/s", share, self._folder, rate)

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

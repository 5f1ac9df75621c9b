"""Copies of folders in a bucket, as ArrayRecord files can only be read from a disk.

    CACHE/BUCKET/PATH/VERSION/

CACHE is a local folder. VERSION is the id in the manifest of a prepared folder, and a digest of the
files of any other. Each file appears whole, under its name; of several processes of a machine one
copies and the others wait. A later run finds the files and copies what is missing or not of the
right size.
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
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from absl import logging

from nas_jax.storage import reading
from nas_jax.storage.files import whole
from nas_jax.storage.paths import BUCKET, join
from nas_jax.storage.reading import Stat
from nas_jax.utils.errors import DataError

_PIECE = 16 * 2**20  # bytes of one request
_THREADS = 8  # files that are copied at a time, so a machine holds 128 MB of pieces
_TELL_SECONDS = 15.0  # between two lines of progress
_PART = ".part"  # ends the name of a file that is not whole


@dataclass(frozen=True)
class Cache:
    """A local folder with copies of what is in buckets."""

    folder: str
    setting: str  # where the user has set it, for messages

    def place_of(self, path: str) -> Path:
        """Where the copy of a path in a bucket is."""
        parts = [
            part for part in path.removeprefix(BUCKET).split("/") if part not in ("", ".", "..")
        ]
        return Path(os.path.abspath(os.path.expanduser(self.folder)), *parts)

    def copy_folder(self, folder: str, sizes: Mapping[str, int], version: str) -> str:
        """Copies files of a folder in a bucket (name -> bytes) unless they are there.

        Returns the local folder. What was copied whole stays, also after an error.

        Raises:
          DataError: no room, no permission to write, a file that is missing in the bucket or of
            another size, or a bucket that refuses or does not answer.
        """
        target = self.place_of(folder) / version
        if not _missing(target, sizes):
            return str(target)
        with self._writing(target):
            target.mkdir(parents=True, exist_ok=True)
            with _alone(target):
                if missing := _missing(target, sizes):  # another process may have copied them
                    for left in target.rglob(f"*{_PART}"):
                        left.unlink()
                    self._check_room(folder, target, missing)
                    _copy(folder, target, missing)
        return str(target)

    def keep(self, path: Path, data: bytes) -> None:
        """Writes a file so that it is whole or not there. Raises DataError if it cannot."""
        with self._writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path, _part()) as part:
                part.write_bytes(data)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{error.filename or path}: {error.strerror}",
                "a folder to write to",
                f"make room, or set {self.setting} to another folder",
            ) from error

    def _check_room(self, folder: str, target: Path, missing: Mapping[str, int]) -> None:
        need, free = sum(missing.values()), shutil.disk_usage(target).free
        if need > free:
            raise DataError(
                f"{folder}, of which {need / 1e9:.1f} GB are to be copied, with {free / 1e9:.1f} "
                f"GB free in {target}",
                "room for it",
                f"set {self.setting} to a larger disk, or mount the bucket (docs/launch.md)",
            )


def digest(files: Mapping[str, Stat]) -> str:
    """16 hexadecimal digits that change with any file."""
    return hashlib.blake2b(repr(sorted(files.items())).encode(), digest_size=8).hexdigest()


def _part() -> str:
    """Ends the name of a file that is not whole, in one thread of one process."""
    return f".{os.getpid()}-{threading.get_ident()}{_PART}"


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
        _copy_file(join(folder, name), target / name, size, progress.add, stop)

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
    to.parent.mkdir(parents=True, exist_ok=True)
    with whole(to, _part()) as part, open(part, "wb") as file:
        for offset in range(0, size, _PIECE):
            if stop.is_set():
                raise CancelledError
            data = _read(path, offset, min(_PIECE, size - offset))
            file.write(data)
            tell(len(data))


def _read(path: str, offset: int, size: int) -> bytes:
    try:
        data = reading.read_bytes(path, offset, size)
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

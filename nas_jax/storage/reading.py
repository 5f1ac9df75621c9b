"""Reading files on disk and objects in buckets, whole or in pieces, many at a time.

On disk this is what the operating system does. Of a bucket, an object that is not there raises
FileNotFoundError, as a file does, and one that is refused or not answered DataError.

Folders do not exist in a bucket: there is one where a name begins with it.
"""

from __future__ import annotations

import errno
import glob as local_glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from nas_jax.storage.paths import BUCKET, check_bucket, failures, file_system, is_bucket, refusal
from nas_jax.utils.errors import DataError, UserError

# Requests at a time, where many are made: each waits some 30 ms for its first byte.
THREADS = 16
_NEAR, _FAR = 256 * 1024, 8 * 2**20  # bytes of one request of a RangedFile, at least and at most

Item = TypeVar("Item")
Made = TypeVar("Made")


class Stat(NamedTuple):
    """What is known of a file without reading it."""

    size: int  # bytes
    version: str  # changes whenever an object is written again; "" for files


def read_bytes(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or `size` of them from `offset` on (fewer where it ends before).

    A file is opened anew each time: that costs microseconds, and nothing has to survive pickling,
    threads or a thousand shards. An object is one request.

    Raises:
      OSError: a file that is missing or unreadable.
      DataError: a bucket that refuses or does not answer.
    """
    if is_bucket(path):
        if size == 0:
            return b""
        end = None if size is None else offset + size
        return _ask(path, "cat_file", start=offset if offset or end else None, end=end)
    if size is None and not offset:
        with open(path, "rb") as file:
            return file.read()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(
            descriptor, os.fstat(descriptor).st_size - offset if size is None else size, offset
        )
    finally:
        os.close(descriptor)


def stat(path: str) -> Stat:
    """Size and version. Errors: as read_bytes."""
    if not is_bucket(path):
        return Stat(os.path.getsize(path), "")
    found = _ask(path, "info")
    if found["type"] != "file":
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return Stat(int(found["size"]), str(found.get("generation", "")))


def is_file(path: str) -> bool:
    """Whether there is such a file. Raises DataError where a bucket refuses or does not answer."""
    return _kind(path) == "file" if is_bucket(path) else os.path.isfile(path)


def is_dir(path: str) -> bool:
    """Whether there is such a folder.

    Raises DataError where a bucket refuses or does not answer.
    """
    return _kind(path) == "directory" if is_bucket(path) else os.path.isdir(path)


def _kind(path: str) -> str:
    try:
        return _ask(path.rstrip("/"), "info")["type"]
    except FileNotFoundError:
        return ""


def glob(pattern: str) -> list[str]:
    """The sorted paths that match, [] where none does; ~ is the home folder.

    Raises DataError where a bucket does not exist, refuses or does not answer.
    """
    if not is_bucket(pattern):
        pattern = os.path.expanduser(pattern)
        found = sorted(local_glob.glob(pattern))
        return found or ([pattern] if os.path.exists(pattern) else [])  # a name with brackets in it
    try:
        found = sorted(BUCKET + name for name in _ask(pattern, "glob"))
    except FileNotFoundError:
        found = []
    if not found and is_file(pattern):
        return [pattern]
    if not found:
        check_bucket(pattern, DataError)
    return found


def files_below(folder: str) -> dict[str, Stat]:
    """Every object below a folder in a bucket: name from there -> size and version.

    One request for 1,000 of them.
    """
    prefix = folder.removeprefix(BUCKET).rstrip("/") + "/"
    try:
        found = _ask(folder, "find", detail=True)
    except FileNotFoundError:
        return {}
    return {
        name.removeprefix(prefix): Stat(int(about["size"]), str(about.get("generation", "")))
        for name, about in found.items()
        if about["type"] == "file" and name.startswith(prefix) and not name.endswith("/")
    }


def each(
    function: Callable[[Item], Made], items: Iterable[Item], threads: int = THREADS
) -> Iterator[Made]:
    """`function` of every item, in their order, several at a time, as buckets are waited for."""
    pool = ThreadPoolExecutor(threads, "bucket")
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class RangedFile:
    """An object as a file that is read forwards in small pieces, some of it skipped.

    So tarfile reads headers. A request costs about as much as 1/2 MB. So pieces that lie closer are
    read together, in requests that grow to 8 MB, and beyond wider gaps each request is for 256 KB.
    """

    def __init__(self, path: str):
        """Asks for the size; errors as `stat`."""
        self.path, self.stat = path, stat(path)
        self._position, self._start, self._data, self._ahead = 0, 0, b"", _NEAR // 2

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to an offset from the start, from here or from the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.stat.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The offset that is read next."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next bytes, fewer at the end."""
        start = self._position
        end = self.stat.size if size < 0 else min(start + size, self.stat.size)
        if end <= start:
            return b""
        if not self._start <= start <= end <= self._start + len(self._data):
            near = 0 <= start - self._start <= len(self._data) + self._ahead
            self._ahead = min(2 * self._ahead, _FAR) if near else _NEAR
            wanted = min(max(end - start, self._ahead), self.stat.size - start)
            self._start, self._data = start, read_bytes(self.path, start, wanted)
            if len(self._data) != wanted:
                raise OSError(errno.EIO, "the object has changed while it was read", self.path)
        self._position = end
        return self._data[start - self._start : end - self._start]


def _ask(path: str, method: str, **arguments: Any) -> Any:
    """Calls a method of the file system with the path. Errors: see the top."""
    try:
        return getattr(file_system(), method)(path.removeprefix(BUCKET), **arguments)
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", path) from error
    except UserError:  # without gcsfs
        raise
    # gcsfs has ValueError for a request, RuntimeError for an answer that makes no sense to it
    except failures(ValueError, RuntimeError) as error:
        raise refusal(path, error, DataError) from error

"""Paths on the disk and in buckets (gs://BUCKET/...), and the few things that are done differently
there.

In a bucket a file is there whole or not at all. Nothing can be appended to it, renaming is copying,
and a folder is the beginning of some names: it need not be made and cannot be empty. Paths on the
disk are `pathlib`'s, those in a bucket `etils.epath`'s, which reads and writes through gcsfs.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas_jax.utils.errors import CheckpointError, UserError

BUCKET = "gs://"
# without a connection, without a byte: the request is made again
CONNECT_SECONDS, SILENT_SECONDS = 30.0, 60.0
COPY_SECONDS = 30  # between two copies of a growing file to a bucket, at least;
# and so many times as long as the last copy took: three such files take 5% of the time at most
COPY_SHARE = 60

_lock = threading.Lock()
_opened: dict[int, Any] = {}  # process -> file system


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is in a bucket."""
    return str(path).startswith(BUCKET)


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path that a user wrote. Raises UserError if it is in a bucket and gcsfs is not installed.

    `pathlib.Path` alone makes gs:/BUCKET of gs://BUCKET, and so does `absolute()` of either kind.
    """
    if not is_bucket(path):
        return Path(path)
    _check_packages(path)
    # TensorFlow has its own errors, where it is installed
    os.environ.setdefault("EPATH_USE_TF", "false")
    from etils import epath

    return epath.Path(path)


def absolute(path: str | os.PathLike[str]) -> Path:
    """`path` from the root on."""
    return as_path(path) if is_bucket(path) else Path(path).absolute()


def file_system() -> Any:
    """The fsspec file system of all buckets, one for each process: open it where it is used, never
    pickle it.

    Its thread does not survive a fork. It tries a request that fails for the moment (429, 5xx, a
    broken connection) six times within some 35 seconds.
    """
    with _lock:
        if os.getpid() not in _opened:
            _check_packages(BUCKET)
            import fsspec

            _opened[os.getpid()] = fsspec.filesystem("gs", skip_instance_cache=True)
        return _opened[os.getpid()]


def _check_packages(path: str | os.PathLike[str]) -> None:
    if "gcsfs" not in sys.modules and importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"{path} without the package gcsfs",
            "the package in this environment",
            "pip install gcsfs",
        )
    # Zonal buckets would be asked for over gRPC, at every read where that is not allowed.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # it prints the traceback of what it raises
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    import aiohttp
    from fsspec.config import conf

    conf.setdefault("gcs", {}).update(
        # TensorStore writes past it: a listing that is kept would lack its files
        use_listings_cache=False,
        requests_timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
        ),
    )


# ------------------------------------------------------------------------------------------- errors


def failures() -> tuple[type[BaseException], ...]:
    """What is raised when a disk or a bucket does not do as it is told.

    For `except failures() as error`.
    """
    if "gcsfs" not in sys.modules:
        return (OSError,)
    import aiohttp
    from gcsfs.retry import ChecksumError, HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return (OSError, HttpError, ChecksumError, aiohttp.ClientError, GoogleAPIError, GoogleAuthError)


def is_out_of_reach(error: BaseException) -> bool:
    """Whether a bucket refused or did not answer, which says nothing about what is in it."""
    if str(error).startswith(("Forbidden: ", "Bad Request: ")):  # gcsfs has no classes for these
        return True
    if not isinstance(error, OSError):
        return isinstance(error, failures())
    network = ("aiohttp", "requests", "google", "fsspec")
    return isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in network


def in_words(error: BaseException) -> str:
    """What went wrong on a disk or in a bucket, in a few words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Forbidden: "):
        return f"access denied: {lines[-1].rstrip('.')}"
    if isinstance(error, FileNotFoundError) and not error.strerror:
        return "No such file or bucket"
    # which names no host
    text = None if is_out_of_reach(error) else getattr(error, "strerror", None)
    return (text or "".join(lines[:1]).rstrip("."))[:200] or type(error).__name__


@contextmanager
def reaching(
    path: str | os.PathLike[str], kind: type[UserError] = CheckpointError
) -> Iterator[None]:
    """A context that uses a bucket: refused or without an answer, it raises `kind`, one line."""
    try:
        yield
    except failures() as error:
        if not is_out_of_reach(error):
            raise
        raise _refusal(path, error, kind) from error


def check_bucket(
    path: str | os.PathLike[str], kind: type[UserError] = CheckpointError, described: bool = False
) -> None:
    """Raises `kind` if `path` is in a bucket that is not there or cannot be listed.

    described: also if what it is may not be asked (storage.buckets.get), as Orbax does.
    """
    if not is_bucket(path):
        return
    name = str(path).removeprefix(BUCKET).split("/")[0]
    if not name:
        raise kind(f"{path} without a bucket", "gs://BUCKET/FOLDER", "name one")
    with reaching(path, kind):
        try:
            file_system().call("GET", "b/{}/o", name, maxResults=1)
            if described:
                file_system().call("GET", "b/{}", name)
        except FileNotFoundError as error:
            raise kind(
                f"{path}: there is no bucket {name}",
                "one that exists",
                "create it, or check its name",
            ) from error


def _refusal(
    path: str | os.PathLike[str], error: BaseException, kind: type[UserError]
) -> UserError:
    reason = in_words(error)
    if "access" in reason or getattr(error, "code", 0) in (401, 403):
        remedy = (
            "log in (gcloud auth application-default login), or give the account the roles of "
            "docs/launch.md"
        )
        return kind(f"{path}: {reason}", "a bucket that this account may read and write", remedy)
    return kind(f"{path}: {reason}", "a bucket that answers", "check the network, and start again")


# ------------------------------------------------------------------------------ reading and writing


def entries(folder: Path) -> list[Path]:
    """What is in `folder`, by name; nothing if it is not there."""
    if not is_bucket(folder):
        return sorted(folder.glob("*"))
    try:
        found = file_system().ls(str(folder), detail=False)
    except FileNotFoundError:
        return []
    names = {
        name.rstrip("/").rpartition("/")[2]
        for name in found
        if name.rstrip("/") != str(folder)[len(BUCKET) :]
    }
    return [folder / name for name in sorted(names)]


def read_text(path: Path, errors: str = "strict") -> str:
    """A UTF-8 file."""
    return path.read_bytes().decode("utf-8", errors)


def total_bytes(folder: Path) -> int:
    """The sizes of all files below `folder`."""
    if is_bucket(folder):
        return int(file_system().du(str(folder)))
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def make_folder(folder: Path) -> None:
    """Makes `folder` and those above it, unless they are there."""
    if not is_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a UTF-8 file that is there whole or not at all: on the disk under another name
    first.
    """
    if is_bucket(path):
        path.write_bytes(text.encode())
        return
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def rename_folder(folder: Path, target: Path) -> None:
    """Gives `folder` another name; in a bucket it is copied within the cloud and then deleted."""
    if not is_bucket(folder):
        os.rename(folder, target)
        return
    system = file_system()
    old, new = str(folder)[len(BUCKET) :], str(target)[len(BUCKET) :]
    names = system.find(old)
    system.copy(names, [new + name[len(old) :] for name in names])
    system.rm(names)


@contextmanager
def through_disk(path: Path) -> Iterator[Path]:
    """A path on the disk to write a file or a folder to, which at the end is found at `path`."""
    if not is_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="nas_jax-") as folder:
        local = Path(folder, path.name)
        yield local
        put(local, path)


def put(local: Path, path: Path) -> None:
    """Copies a file, or a folder with all that is in it, into a bucket."""
    for file in sorted(local.rglob("*")) if local.is_dir() else [local]:
        if file.is_file():
            file_system().put_file(
                str(file), str(path / file.relative_to(local)) if local.is_dir() else str(path)
            )


class Mirror:
    """A file that grows: write to `local`, and then say `flush`.

    On the disk `local` is `path`, and nothing is left to do. For a bucket it is a temporary file,
    which begins with what `path` has and is copied there whole: at the end, and before that seldom,
    so that it costs little time.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self.local, self._path, self._folder = path, path, None
        if not is_bucket(path):
            return
        self._folder = tempfile.TemporaryDirectory(prefix="nas_jax-")
        self.local = Path(self._folder.name, path.name)
        self._clock, self._copied, self._due = clock, 0, clock() + COPY_SECONDS
        if path.exists():
            self._copied = self.local.write_bytes(path.read_bytes())

    def flush(self, now: bool = False) -> None:
        """Copies what is new, if it is time. now: in any case."""
        if self._folder is None or not (now or self._clock() >= self._due):
            return
        began, size = self._clock(), self.local.stat().st_size if self.local.exists() else 0
        if size != self._copied:
            put(self.local, self._path)
            self._copied = size
        self._due = self._clock() + max(COPY_SECONDS, COPY_SHARE * (self._clock() - began))

    def close(self) -> None:
        """Copies the rest and removes the temporary file."""
        if self._folder is not None:
            self.flush(now=True)
            self._folder.cleanup()


class GrowingText:
    """A text file that is appended to, line by line.

    On the disk a line is there at once, in a bucket see `Mirror`.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self.name = path
        self._mirror = Mirror(path, clock)
        self._file = self._mirror.local.open("a", encoding="utf-8")

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()
        self._mirror.flush()

    def sync(self) -> None:
        """Returns when all that was written is at the path."""
        self._mirror.flush(now=True)

    def close(self) -> None:
        self._file.close()
        self._mirror.close()

    def __enter__(self) -> GrowingText:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

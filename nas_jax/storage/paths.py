"""Paths on the disk and in buckets, the connection to buckets, and what goes wrong there.

Paths on the disk are `pathlib`'s, those in a bucket `etils.epath`'s, which reads and writes through
gcsfs.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import posixpath
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas_jax.utils.errors import CheckpointError, DataError, UserError

BUCKET = "gs://"
# Seconds to connect, and seconds without a byte, after which a request is made again.
CONNECT_SECONDS, SILENT_SECONDS = 30.0, 60.0

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


def join(folder: str, name: str) -> str:
    """As os.path.join; in a bucket . and .. are resolved too, as no operating system does so there.

    A gs:// name stays as it is.
    """
    if is_bucket(name):
        return name
    path = os.path.join(folder, name)
    if is_bucket(path) and re.search(r"/\.\.?/", path):
        bucket, _, inside = path.removeprefix(BUCKET).partition("/")
        path = f"{BUCKET}{bucket}/{posixpath.normpath(inside)}"
    return path


# --------------------------------------------------------------------------------------- connection


def file_system() -> Any:
    """The fsspec file system of all buckets, one for each process.

    Open it where it is used, and never pickle it: its thread does not survive a fork. A request
    that fails for the moment (429, 5xx, a broken connection) is made six times within some 35
    seconds.
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


# ------------------------------------------------------------------------------------------ failure


def failures(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What is raised when a disk or a bucket does not do as it is told, and others.

    For `except failures() as error`.
    """
    if "gcsfs" not in sys.modules:
        return (OSError, *others)
    import aiohttp
    from gcsfs.retry import ChecksumError, HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    service = (HttpError, ChecksumError, aiohttp.ClientError, GoogleAPIError, GoogleAuthError)
    return (OSError, *service, *others)


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
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    if _is_denied(error):
        return f"access denied: {lines[-1] if lines else type(error).__name__}"[:200]
    if lines and lines[0].startswith("Bad Request: "):  # and the address, which helps nobody
        return lines[-1][:200]
    if isinstance(error, FileNotFoundError) and not error.strerror:
        return "No such file or bucket"
    # which names no host
    text = None if is_out_of_reach(error) else getattr(error, "strerror", None)
    return (text or "".join(lines[:1]))[:200] or type(error).__name__


def _is_denied(error: BaseException) -> bool:
    return (
        str(error).startswith("Forbidden: ")
        or getattr(error, "code", None) in (401, 403)
        or type(error).__name__ in ("RefreshError", "DefaultCredentialsError")  # of google.auth
    )


def refusal(path: str | os.PathLike[str], error: BaseException, kind: type[UserError]) -> UserError:
    """What to raise of `kind` when a bucket refused `path` or did not answer.

    DataError: data are only read, so the account needs fewer rights.
    """
    got = f"{path}: {in_words(error)}"
    if _is_denied(error):
        rights, role = "read and write", "the roles of docs/launch.md"
        if issubclass(kind, DataError):
            rights, role = "read", "the role Storage Object Viewer"
        remedy = f"log in (gcloud auth application-default login), or give the account {role}"
        return kind(got, f"a bucket that this account may {rights}", remedy)
    if isinstance(error, ValueError):
        return kind(got, "gs://BUCKET/NAME", "correct the path")
    remedy = "check the network, and start again: a run goes on from its last checkpoint"
    return kind(got, "a bucket that answers", remedy)


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
        raise refusal(path, error, kind) from error


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

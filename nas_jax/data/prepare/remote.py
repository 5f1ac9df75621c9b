"""Inputs elsewhere: hf://, https://, s3:// and what else fsspec knows.

Tars and parquet files hold their pictures, so each is a unit: it is copied beside the result when
its turn comes, read, and deleted. Of parquet the columns are read in place before, which is a few
requests. Nothing is fetched twice, and an interrupted run goes on at the first file that is not
finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from typing import Any, BinaryIO

from nas_jax.data.patterns import expand_braces
from nas_jax.utils.errors import DataError, UserError

FORMS = {"webdataset": (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"), "parquet": (".parquet",)}
_CHUNK = 1 << 22  # bytes that are copied at once


def is_remote(path: str) -> bool:
    """Whether a path has a protocol."""
    return "://" in path and not path.startswith("tfds:")


def list_remote(given: str) -> list[tuple[str, str]]:
    """(kind, address) of each file of an address: a file, a glob, {000..012}, or a folder with tars
    or parquet files below it.

    Raises DataError: nothing there, or files of another form. UserError: a package is missing.
    """
    found: list[tuple[str, str]] = []
    for one in expand_braces(given):
        with _reaching(one):
            files, inner = _open(one)
            paths = sorted(files.glob(inner)) if any(sign in inner for sign in "*?[") else [inner]
            if len(paths) == 1 and files.isdir(paths[0]):
                paths = sorted(files.find(paths[0]))
                paths = [path for path in paths if _kind(path)] or paths
            elif not paths or not files.exists(paths[0]):
                paths = []
            names = [files.unstrip_protocol(path) for path in paths]
        found += [(_kind(name), name) for name in names]
    if not found:
        raise DataError(
            f"no file {given!r}", "an address that is there", "check the INPUT arguments"
        )
    kinds = {kind for kind, _ in found}
    if "" in kinds or len(kinds) > 1:
        odd = next(name for kind, name in found if not kind or kind != found[0][0])
        raise DataError(
            f"{odd} among the files of {given!r}",
            "tars alone, or parquet files alone: these hold their pictures",
            "name some of them, as in FOLDER/*.tar; of a list download it with its pictures first",
        )
    return found


def _kind(name: str) -> str:
    return next((kind for kind, ends in FORMS.items() if name.lower().endswith(ends)), "")


def stat_remote(path: str) -> tuple[int, int]:
    """Bytes of a file, and a number that changes with it as far as its place says."""
    with _reaching(path):
        files, inner = _open(path)
        about = files.info(inner)
        signs = {
            name: str(about.get(name, "")) for name in ("size", "ETag", "etag", "mtime", "created")
        }
        digest = hashlib.blake2b(repr(sorted(signs.items())).encode(), digest_size=6).digest()
        return int(about.get("size") or 0), int.from_bytes(digest, "big")


def open_remote(path: str) -> BinaryIO:
    """The file, read where it is."""
    with _reaching(path):
        files, inner = _open(path)
        return files.open(inner, "rb")


@contextlib.contextmanager
def fetched(path: str, folder: str | os.PathLike) -> Iterator[str]:
    """The path of a copy in `folder`, which is deleted at the end. Raises DataError."""
    name = os.path.basename(path)
    copy = os.path.join(folder, f"fetched-{name}.tmp-{os.getpid()}")
    try:
        with open(copy, "wb") as out, _reaching(path):
            files, inner = _open(path)
            with files.open(inner, "rb") as file:
                shutil.copyfileobj(file, out, _CHUNK)
        yield copy
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy)


def _open(path: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(path)
    except ImportError as error:  # fsspec itself, or what it needs for this protocol
        raise UserError(
            f"{path} without the package for {path.split('://')[0]}:// ({error})",
            "the package in this environment",
            "pip install 'nas_jax[remote]'",
        ) from error
    except ValueError as error:
        known = "hf://, https:// or s3://, or another that fsspec knows"
        raise DataError(f"{path}: {error}", known, "check the INPUT arguments") from error


@contextlib.contextmanager
def _reaching(path: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each protocol's package has its own, of no common kind
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{path}: {lines[0][:200].rstrip('.')}",
            "an address that is there and may be read, and room for a copy",
            "check it and the account, and run the same command again to go on",
        ) from error

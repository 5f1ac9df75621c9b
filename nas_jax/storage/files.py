"""Whole files and folders on the disk and in buckets, by `paths.as_path`.

Errors are those of the disk or the bucket, see `paths.failures`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nas_jax.storage.paths import BUCKET, file_system, is_bucket


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


def check_writable(folder: Path) -> Path:
    """The folder on the disk that is there, `folder` itself or one above it.

    Raises OSError where no file can be written in it.
    """
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file (text as UTF-8) that is there whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    if is_bucket(path):
        path.write_bytes(data)
        return
    with whole(path) as partial:
        partial.write_bytes(data)


@contextmanager
def whole(path: Path, ending: str = ".tmp", durable: bool = False) -> Iterator[Path]:
    """A path on the disk to write a file to, which gets the name `path` at the end.

    ending: of the name until then. If the context raises, the file is removed.
    durable: what was written, and its name, outlast a power cut.
    """
    partial = path.with_name(path.name + ending)
    try:
        yield partial
        if durable:
            sync(partial)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

"""Files as streams of plain bytes: unpacked, and UTF-16 as UTF-8.

Which it is follows from the first bytes. A place in such a file is counted in plain bytes, so that
a unit of a packed list begins and ends as that of a plain one; it is reached by reading up to it.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import os
import shutil
import zlib
from collections.abc import Callable, Iterator

from nas_jax.utils.errors import DataError

_CHUNK = 1 << 20  # bytes that are read at once
_PACKED: tuple[tuple[bytes, Callable[[str], io.BufferedIOBase]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)
_WIDE = (  # the longer mark first: UTF-32 begins as UTF-16 does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
PACKED_SUFFIXES = (".gz", ".bz2", ".xz")


def is_packed(path: str) -> bool:
    """Whether a file is compressed with gzip, bzip2 or xz. Raises OSError."""
    with open(path, "rb") as file:
        return _opener(file.read(6)) is not None


def _opener(head: bytes) -> Callable[[str], io.BufferedIOBase] | None:
    return next((opener for magic, opener in _PACKED if head.startswith(magic)), None)


def open_bytes(path: str) -> io.BufferedIOBase:
    """The file, unpacked as it is read. Raises OSError; reading raises what `unpacking` names."""
    with open(path, "rb") as file:
        opener = _opener(file.read(6))
    return opener(path) if opener else open(path, "rb")


def open_text(path: str, start: int = 0) -> io.BufferedIOBase:
    """The bytes of a text as UTF-8, from the plain byte `start` on.

    Raises OSError, and DataError for UTF-16 without a mark of its order.
    """
    file = open_bytes(path)
    head = file.read(4)
    encoding = next((name for mark, name in _WIDE if head.startswith(mark)), "")
    if not encoding and b"\0" in head[:2]:
        file.close()
        raise DataError(f"{path}, UTF-16 without a mark", "UTF-8", "save as UTF-8")
    file.seek(0)
    if encoding:
        file = io.BufferedReader(_AsUtf8(file, encoding), _CHUNK)
    elif not isinstance(file, gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile):
        file.seek(start)
        return file
    while start:
        skipped = len(file.read(min(_CHUNK, start)))
        if not skipped:
            break
        start -= skipped
    return file


class _AsUtf8(io.RawIOBase):
    """A text in a wider encoding, as UTF-8; what cannot be read is U+FFFD."""

    def __init__(self, file: io.BufferedIOBase, encoding: str):
        self._file, self._rest = file, b""
        self._decode = codecs.getincrementaldecoder(encoding)("replace").decode

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        ended = False
        while not self._rest and not ended:
            chunk = self._file.read(_CHUNK)
            ended = not chunk
            self._rest = self._decode(chunk, ended).encode("utf-8", "replace")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def unpacking(path: str) -> Iterator[None]:
    """A context that reads `path`; raises DataError where it is cut short or damaged."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}, packed and not whole ({' '.join(str(error).split())})",
            "a whole file",
            "copy it again; it may be cut short",
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror or error}", "a readable file", "check the INPUT arguments"
        ) from error


@contextlib.contextmanager
def unpacked(path: str, folder: str | os.PathLike) -> Iterator[str]:
    """The path of the plain file, for a packed one in `folder` until the end.

    As far as it can be read: what is cut short is cut there too. Raises OSError, on a full disk.
    """
    if not is_packed(path):
        yield path
        return
    plain = os.path.join(folder, f"unpacked-{os.path.basename(path)}.tmp-{os.getpid()}")
    try:
        with open(plain, "wb") as out, open_bytes(path) as file:
            broken = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
            with contextlib.suppress(*broken):
                shutil.copyfileobj(file, out, _CHUNK)
        yield plain
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(plain)

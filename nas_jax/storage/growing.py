"""Files that grow, on the disk and in buckets, where nothing can be appended.

Errors are those of the disk or the bucket, see `paths.failures`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nas_jax.storage.files import put
from nas_jax.storage.paths import is_bucket

# Between two copies of a growing file to a bucket: so many seconds, and so many times as long as
# the last copy took. Three such files take 5% of the time at most.
COPY_SECONDS, COPY_SHARE = 30, 60


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

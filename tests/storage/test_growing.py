"""Files that grow, against the stand-in of Google's storage."""

from __future__ import annotations

import fake_gcs
import pytest

from nas_jax.storage import growing
from nas_jax.storage.paths import as_path


@pytest.fixture(scope="module")
def bucket():
    with fake_gcs.bucket() as bucket:
        yield bucket


def test_a_growing_file_is_copied_seldom_and_at_the_end(bucket):
    now, path = [0.0], as_path(f"{bucket.url}/lines.txt")
    writes = lambda: sum(method == "POST" and "lines" in name for method, name in bucket.requests)  # noqa: E731
    bucket.put("lines.txt", "before\n")
    with growing.GrowingText(path, lambda: now[0]) as file:
        for number in range(5):
            file.write(f"{number}\n")
        assert bucket.get("lines.txt") == b"before\n" and writes() == 0
        now[0] += growing.COPY_SECONDS
        file.write("5\n")
        assert bucket.get("lines.txt").endswith(b"4\n5\n")
        once = writes()
        file.write("6\n")
        assert writes() == once
        file.sync()
        assert bucket.get("lines.txt").endswith(b"6\n") and writes() == 2 * once
        file.sync()  # nothing is new
        assert writes() == 2 * once
        file.write("7\n")
    assert bucket.get("lines.txt") == b"before\n" + b"".join(
        b"%d\n" % number for number in range(8)
    )
    assert not file._mirror.local.exists()


def test_a_slow_bucket_is_written_less_often(bucket, monkeypatch):
    now, path = [0.0], as_path(f"{bucket.url}/slow.txt")
    monkeypatch.setattr(growing, "put", lambda local, path: now.__setitem__(0, now[0] + 10))
    mirror = growing.Mirror(path, lambda: now[0])
    mirror.local.write_text("a")
    mirror.flush(now=True)
    assert mirror._due == 10 + 10 * growing.COPY_SHARE

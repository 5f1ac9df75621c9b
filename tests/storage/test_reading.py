"""Pieces of files and objects, against the stand-in of Google's storage."""

from __future__ import annotations

import fake_gcs
import numpy as np
import pytest

from nas_jax.storage import reading
from nas_jax.storage.paths import check_bucket
from nas_jax.utils.errors import DataError


@pytest.fixture(scope="module")
def bucket():
    with fake_gcs.bucket() as bucket:
        yield bucket


def test_a_ranged_file_reads_what_is_there(bucket, monkeypatch):
    monkeypatch.setattr(reading, "_NEAR", 16)
    monkeypatch.setattr(reading, "_FAR", 64)
    data = np.random.default_rng(0).bytes(1000)
    bucket.put("x", data)
    file, rng = reading.RangedFile(f"{bucket.url}/x"), np.random.default_rng(1)
    for offset, size in zip(rng.integers(0, 1010, 150), rng.integers(-1, 120, 150), strict=True):
        file.seek(int(offset))
        expected = data[offset:] if size < 0 else data[offset : offset + size]
        assert file.read(int(size)) == expected and file.tell() == offset + len(expected)
    bucket.put("x", b"short")
    file.seek(900)
    with pytest.raises(DataError, match="satisf|invalid|416"):
        file.read(50)


def test_several_at_a_time_keep_their_order_and_stop_at_an_error():
    started = []

    def work(number: int) -> int:
        started.append(number)
        if number == 5:
            raise OSError("five")
        return number

    results = reading.each(work, range(1000), threads=2)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="five"):
        next(results)
    assert len(started) < 20


def test_a_refusal_reads_the_same_wherever_it_is_found(bucket, monkeypatch):
    monkeypatch.setattr(bucket, "forbidden", True)
    url = f"{bucket.url}/x"
    asks = (reading.read_bytes, reading.stat, reading.is_dir, reading.glob, reading.files_below)
    lines = set()
    for ask in (*asks, lambda path: check_bucket(path, DataError)):
        with pytest.raises(DataError, match="access denied: .* may read. Remedy: log in") as caught:
            ask(url)
        lines.add(str(caught.value).replace("objects.list", "objects"))
    assert len(lines) == 1, lines

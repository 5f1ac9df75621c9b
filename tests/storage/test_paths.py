"""Paths in a bucket and what goes wrong there, against the stand-in of Google's storage."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_gcs
import pytest

from nas_jax.storage import paths
from nas_jax.utils.errors import CheckpointError, DataError, UserError


@pytest.fixture(scope="module")
def bucket():
    with fake_gcs.bucket() as bucket:
        yield bucket


def test_a_path_in_a_bucket_keeps_its_slashes_and_one_on_the_disk_is_pathlibs(bucket):
    for way in (paths.as_path, paths.absolute):
        path = way(f"{bucket.url}/runs/a")
        assert str(path / "config.json") == f"{bucket.url}/runs/a/config.json" and paths.is_bucket(
            path
        )
        assert str(way(path).parent) == f"{bucket.url}/runs" and way(path).name == "a"
    assert type(paths.as_path("runs/a")) is type(Path()) and paths.as_path("runs/a") == Path(
        "runs/a"
    )
    assert paths.absolute("runs/a") == Path("runs/a").absolute() and not paths.is_bucket("/gs/a")


def test_names_join_as_paths_do():
    assert paths.join("gs://b/root/", "a/./b/../c.jpg") == "gs://b/root/a/c.jpg"
    assert paths.join("gs://b/r", "a//b.jpg") == "gs://b/r/a//b.jpg"
    assert paths.join("folder", "gs://b/x") == "gs://b/x"
    assert paths.join("", "a/../b") == "a/../b"


# What is asked for, the state of the bucket -> the line.
REFUSED = {
    (
        "gs://no-such-bucket/run",
        "",
    ): r"gs://no-such-bucket/run: there is no bucket no-such-bucket; .* Remedy: create it",
    ("gs:///run", ""): "without a bucket; expected gs://BUCKET/FOLDER",
    ("{}/run", "forbidden"): r"access denied: Anonymous caller does not have .*; .* Remedy: log in",
}


@pytest.mark.parametrize(("path", "state"), REFUSED)
def test_a_bucket_that_is_missing_or_closed_is_one_line(path, state, bucket, monkeypatch):
    if state:
        monkeypatch.setattr(bucket, state, True)
    for kind in (CheckpointError, DataError):
        with pytest.raises(kind, match=REFUSED[path, state]) as caught:
            paths.check_bucket(path.format(bucket.url), kind)
        assert "\n" not in str(caught.value)
    paths.check_bucket("gs-less/path")  # of the disk nothing is asked


def test_a_bucket_without_an_answer_is_one_line_and_one_that_stumbles_is_asked_again(
    bucket, monkeypatch, caplog
):
    import gcsfs.retry

    naps = []
    quick = SimpleNamespace(sleep=lambda seconds: naps.append(seconds) or asyncio.sleep(0))
    monkeypatch.setattr(gcsfs.retry, "asyncio", quick)
    bucket.broken = 2
    paths.check_bucket(bucket.url)
    assert len(naps) == 2
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match=r"Cannot connect.*; expected a bucket that answers"
    ) as caught:
        paths.check_bucket(bucket.url)
    assert "\n" not in str(caught.value) and len(naps) > 5 and not caplog.records


def test_a_refusal_says_nothing_about_the_files_and_a_missing_file_does(bucket, monkeypatch):
    path = paths.as_path(f"{bucket.url}/nothing")
    with pytest.raises(FileNotFoundError) as missing:
        path.read_bytes()
    assert not paths.is_out_of_reach(missing.value)
    with pytest.raises(FileNotFoundError), paths.reaching(path):
        path.read_bytes()
    monkeypatch.setattr(bucket, "forbidden", True)
    with pytest.raises(paths.failures()) as refused:
        path.read_bytes()
    assert paths.is_out_of_reach(refused.value)
    with pytest.raises(CheckpointError, match="access denied"), paths.reaching(path):
        path.read_bytes()
    assert not paths.is_out_of_reach(PermissionError(13, "Permission denied"))
    assert paths.in_words(PermissionError(13, "Permission denied")) == "Permission denied"


def test_without_gcsfs_the_remedy_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "gcsfs", raising=False)
    monkeypatch.setattr(paths, "_opened", {})
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gcsfs" else found(name)
    )
    for reach in (lambda: paths.as_path("gs://b/run"), paths.file_system):
        with pytest.raises(
            UserError, match="gs://.* without the package gcsfs; .* Remedy: pip install gcsfs"
        ):
            reach()
    assert paths.as_path("run") == Path("run")

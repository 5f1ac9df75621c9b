"""Paths in a bucket, against the stand-in of Google's storage."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_gcs
import pytest

from nas_jax.utils import paths
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


@pytest.mark.parametrize("where", ("disk", "bucket"))
def test_files_and_folders_are_written_found_and_renamed(where, bucket, tmp_path):
    folder = tmp_path / "files" if where == "disk" else paths.as_path(f"{bucket.url}/files")
    assert paths.entries(folder) == []
    paths.make_folder(folder / "a")
    paths.write_whole(folder / "a" / "one.txt", "früh")
    paths.write_whole(folder / "a" / "one.txt", "spät")
    paths.write_whole(folder / "two.txt", "22")
    assert paths.read_text(folder / "a" / "one.txt") == "spät"
    assert (
        paths.entries(folder) == [folder / "a", folder / "two.txt"]
        and paths.total_bytes(folder) == 7
    )
    paths.rename_folder(folder / "a", folder / "b")
    assert paths.entries(folder) == [folder / "b", folder / "two.txt"]
    assert [path.name for path in paths.entries(folder / "b")] == ["one.txt"]
    with paths.through_disk(folder / "b" / "deep") as local:
        (local / "er").mkdir(parents=True)
        (local / "er" / "three.txt").write_text("3")
    assert paths.read_text(folder / "b" / "deep" / "er" / "three.txt") == "3"


def test_what_others_write_into_a_bucket_is_seen(bucket):
    """A listing that gcsfs kept would hide what TensorStore or another process wrote since."""
    folder = paths.as_path(f"{bucket.url}/shared")
    paths.write_whole(folder / "a", "")
    assert len(paths.entries(folder)) == 1 and not (folder / "b").exists()
    bucket.put("shared/b", b"")
    assert len(paths.entries(folder)) == 2 and (folder / "b").exists()


def test_a_growing_file_is_copied_seldom_and_at_the_end(bucket):
    now, path = [0.0], paths.as_path(f"{bucket.url}/lines.txt")
    writes = lambda: sum(method == "POST" and "lines" in name for method, name in bucket.requests)  # noqa: E731
    bucket.put("lines.txt", "before\n")
    with paths.GrowingText(path, lambda: now[0]) as file:
        for number in range(5):
            file.write(f"{number}\n")
        assert bucket.get("lines.txt") == b"before\n" and writes() == 0
        now[0] += paths.COPY_SECONDS
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
    now, path = [0.0], paths.as_path(f"{bucket.url}/slow.txt")
    monkeypatch.setattr(paths, "put", lambda local, path: now.__setitem__(0, now[0] + 10))
    mirror = paths.Mirror(path, lambda: now[0])
    mirror.local.write_text("a")
    mirror.flush(now=True)
    assert mirror._due == 10 + 10 * paths.COPY_SHARE


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

"""Files and folders in a bucket, against the stand-in of Google's storage."""

from __future__ import annotations

import fake_gcs
import pytest

from nas_jax.storage import files
from nas_jax.storage.paths import as_path


@pytest.fixture(scope="module")
def bucket():
    with fake_gcs.bucket() as bucket:
        yield bucket


@pytest.mark.parametrize("where", ("disk", "bucket"))
def test_files_and_folders_are_written_found_and_renamed(where, bucket, tmp_path):
    folder = tmp_path / "files" if where == "disk" else as_path(f"{bucket.url}/files")
    assert files.entries(folder) == []
    files.make_folder(folder / "a")
    files.write_whole(folder / "a" / "one.txt", "früh")
    files.write_whole(folder / "a" / "one.txt", "spät")
    files.write_whole(folder / "two.txt", "22")
    assert files.read_text(folder / "a" / "one.txt") == "spät"
    assert (
        files.entries(folder) == [folder / "a", folder / "two.txt"]
        and files.total_bytes(folder) == 7
    )
    files.rename_folder(folder / "a", folder / "b")
    assert files.entries(folder) == [folder / "b", folder / "two.txt"]
    assert [path.name for path in files.entries(folder / "b")] == ["one.txt"]
    with files.through_disk(folder / "b" / "deep") as local:
        (local / "er").mkdir(parents=True)
        (local / "er" / "three.txt").write_text("3")
    assert files.read_text(folder / "b" / "deep" / "er" / "three.txt") == "3"


def test_what_others_write_into_a_bucket_is_seen(bucket):
    """A listing that gcsfs kept would hide what TensorStore or another process wrote since."""
    folder = as_path(f"{bucket.url}/shared")
    files.write_whole(folder / "a", "")
    assert len(files.entries(folder)) == 1 and not (folder / "b").exists()
    bucket.put("shared/b", b"")
    assert len(files.entries(folder)) == 2 and (folder / "b").exists()


@pytest.mark.parametrize("durable", (False, True))
def test_a_file_that_is_not_written_to_the_end_leaves_the_one_before(durable, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(ValueError, match="half"), files.whole(path, durable=durable) as partial:
        partial.write_text("aft")
        raise ValueError("half")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with files.whole(path, durable=durable) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]

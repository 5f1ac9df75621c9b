"""Data in a bucket: the same records and batches as from files, by few requests, and one clear line
where it fails.
"""

import asyncio
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fake_gcs
import numpy as np
import pytest
from data import hostile

from nas_jax.data import tar_index
from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import open_corpus
from nas_jax.data.pair_files import ImageList, file_eval_sets
from nas_jax.data.pipeline import build_tokenizer, open_source, train_batches
from nas_jax.data.prepare import prepare
from nas_jax.data.prepare.__main__ import run as prepare_command
from nas_jax.data.prepared_files import local_folder, read_manifest
from nas_jax.data.sources import expand
from nas_jax.data.tar_source import WebDatasetSource
from nas_jax.storage import reading
from nas_jax.train.config import RESUMABLE
from nas_jax.utils.errors import ConfigError, DataError
from nas_jax.utils.logging import Console


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Two tars, a list with its pictures, foils and quads, and a prepared folder; the names of the
    bucket.
    """
    folder = tmp_path_factory.mktemp("local")
    for name in ("pairs", "photos/deep", "lists"):
        (folder / name).mkdir(parents=True)
    names = []
    for number, count in enumerate((20, 7)):
        members = []
        for i in range(count):
            members += hostile.sample(
                f"n{number}i{i}", hostile.jpeg(i), f"a red thing {i} of {number}", "a thing"
            )
        hostile.write_tar(folder / f"pairs/t{number}.tar", members)
    for i in range(8):
        names.append(f"deep/{i}.jpg" if i else "./deep/../deep/0.jpg")
        (folder / f"photos/deep/{i}.jpg").write_bytes(hostile.jpeg(i + 50))
    entries = [
        {"image": name, "caption": [f"a blue thing {i}", "one thing"]}
        for i, name in enumerate(names)
    ]
    (folder / "lists/l.json").write_text(json.dumps(entries))
    foil = {
        "image": names[1],
        "caption": "a blue thing 1",
        "foil": "a red thing 1",
        "category": "colour",
    }
    quad = {
        "image_0": names[1],
        "image_1": names[2],
        "caption_0": "a thing",
        "caption_1": "thing a",
    }
    (folder / "lists/foils.jsonl").write_text(json.dumps(foil) + "\n")
    (folder / "lists/quads.jsonl").write_text(json.dumps(quad) + "\n")
    prepare(
        tuple(expand((f"{folder}/pairs/*.tar",), "")),
        folder / "set",
        workers=0,
        console=Console(enabled=False),
    )
    return folder


@pytest.fixture
def bucket(local):
    with fake_gcs.bucket() as made:
        upload(made, local)
        yield made


def upload(bucket: fake_gcs.Bucket, folder: Path, below: str = "") -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.put(below + str(path.relative_to(folder)), path.read_bytes())


@pytest.fixture
def no_waiting(monkeypatch):
    """What gcsfs waits between two tries passes at once."""
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda _: sleep(0))


def reads(bucket: fake_gcs.Bucket) -> list[str]:
    """The objects whose bytes were asked for; forgets all requests."""
    found = [
        path.split("?")[0].rpartition("/")[2]
        for method, path in bucket.requests
        if "alt=media" in path
    ]
    bucket.requests.clear()
    return found


def config_of(root: str, **changes) -> DataConfig:
    config = DataConfig(
        train=(f"{root}/pairs/*.tar", f"{root}/lists/l.json"),
        image_root=f"{root}/photos",
        image_size=16,
        batch_size=4,
        vocab_size=200,
        threads=2,
    )
    return replace(config, **changes)


def test_records_batches_and_evaluation_sets_are_those_of_the_files(local, bucket):
    here, there = config_of(str(local)), config_of(bucket.url)
    wanted, source = (
        open_source(here, "train", 0),
        pickle.loads(pickle.dumps(open_source(there, "train", 0))),
    )
    assert source.remote and not wanted.remote
    assert [source[i] for i in range(len(source))] == [
        wanted[i] for i in range(len(wanted))
    ] and len(source) == 35
    assert source.identity() == wanted.identity()
    assert source.file(34) == f"{bucket.url}/lists/l.json"
    tokenizer = build_tokenizer(here, wanted)
    options = {"text_buckets": (8, 12), "rand_augment_ops": 1}
    with (
        train_batches(replace(here, **options), tokenizer, 1, start_step=3) as ones,
        train_batches(
            replace(there, **options), tokenizer, 1, start_step=3, source=source
        ) as others,
    ):
        for _, one, other in zip(range(4), ones, others, strict=False):
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)

    def val(config, root):
        lists = f"{root}/lists/"
        files = {
            "val": (lists + "l.json",),
            "foils": (lists + "foils.jsonl",),
            "quads": (lists + "quads.jsonl",),
        }
        return file_eval_sets(replace(config, **files))[0]

    one, other = val(here, local), val(there, bucket.url)
    assert len(one.foils) == len(one.quads) == 1 and one.captions == other.captions
    assert (one.foils, one.quads, one.image_ids) == (other.foils, other.quads, other.image_ids)
    np.testing.assert_array_equal(one.images[:], other.images[:])


def test_workers_read_a_bucket(local, bucket):
    """A worker is a process of its own, and opens the bucket itself."""
    config = replace(
        config_of(bucket.url), train=(f"{bucket.url}/pairs/t1.tar",), workers=1, threads=1
    )
    source = open_source(config, "train", 0)
    tokenizer = build_tokenizer(config, source)
    batches = []
    for workers in (0, 1):
        with train_batches(
            replace(config, workers=workers), tokenizer, 0, source=source
        ) as iterator:
            batches.append(next(iterator))
    for name in batches[0]:
        np.testing.assert_array_equal(batches[0][name], batches[1][name])


# ----------------------------------------------------------------------------------------- requests


def many(count: int, size: int) -> bytes:
    """A tar of so many pictures of that size, each with a json."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i in range(count):
            for suffix, data in (
                ("jpg", b"p" * size),
                ("json", json.dumps({"caption": f"text {i}"}).encode()),
            ):
                info = tarfile.TarInfo(f"{i}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(("count", "size", "most"), [(600, 1500, 16), (30, 40_000, 31)])
def test_an_index_costs_few_requests(bucket, monkeypatch, count, size, most):
    """All in one thirty-second: small pictures are read over in blocks, large ones are skipped."""
    monkeypatch.setattr(reading, "_NEAR", reading._NEAR // 32)
    monkeypatch.setattr(reading, "_FAR", reading._FAR // 32)
    data = many(count, size)
    bucket.put("big.tar", data)
    source = WebDatasetSource((f"{bucket.url}/big.tar",))
    spans = len(reads(bucket))
    assert len(source) == count and source.captions(count - 1) == (f"text {count - 1}",)
    assert len(data) / reading._FAR - 1 < spans <= most if size < 8192 else count <= spans <= most
    assert source[count // 2].image == b"p" * size
    assert len(bucket.requests) == 1  # a picture is one request


def test_an_index_is_kept_in_the_cache_until_the_tar_changes(bucket, tmp_path, monkeypatch):
    path, cache = f"{bucket.url}/pairs/t1.tar", str(tmp_path / "cache")
    first = WebDatasetSource((path,), cache=cache)
    record = first[3]
    assert reads(bucket)
    (kept,) = Path(cache).rglob("*.index")
    assert kept.parent == tmp_path / "cache" / bucket.name / "pairs"
    for _ in range(2):
        again = WebDatasetSource((path,), cache=cache)
        assert again[3] == record and again.identity() == first.identity()
        assert reads(bucket) == ["pairs%2Ft1.tar"]  # the picture
        kept.write_bytes(kept.read_bytes()[:-5])  # damaged: made again
        WebDatasetSource((path,), cache=cache)
        assert reads(bucket)
    bucket.put("pairs/t1.tar", many(3, 10))
    assert len(WebDatasetSource((path,), cache=cache)) == 3
    assert len(list(Path(cache).rglob("*.index"))) == 2
    monkeypatch.setattr(tar_index, "_FORMAT", 99)
    assert len(WebDatasetSource((path,), cache=cache)) == 3 and len(reads(bucket)) > 1


def test_local_files_are_read_without_a_bucket(local, monkeypatch):
    monkeypatch.setattr(reading, "file_system", lambda: pytest.fail("a bucket is opened"))
    source = open_source(config_of(str(local), cache="unused"), "train", 0)
    assert len(ImageList(source, 16)) == 35
    assert (
        reading.read_bytes(str(local / "lists/l.json"), 3)
        == (local / "lists/l.json").read_bytes()[3:]
    )


# ------------------------------------------------------------------------------------------- faults


def test_a_request_that_fails_for_the_moment_is_made_again(bucket, no_waiting):
    source = WebDatasetSource((f"{bucket.url}/pairs/t0.tar",))
    wanted = source[5]
    bucket.broken = 4
    assert source[5] == wanted and not bucket.broken
    bucket.broken = 100
    with pytest.raises(DataError, match="Backend Error.*expected a bucket that answers"):
        source[5]


def test_each_fault_is_one_line(bucket):
    url = bucket.url
    cases = [
        ((f"{url}/pairs/q*.tar",), "no file 'gs://.*q.*check data.train"),
        (("gs://no-such-bucket/*.tar",), "there is no bucket no-such-bucket"),
        ((f"{url}/photos",), "no manifest.json"),
        ((f"{url}/none",), "the entry 'gs://.*/none'"),
    ]
    for train, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            open_source(config_of(url, train=train, cache="unused"), "train", 0)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    bucket.put("cut.tar", bucket.get("pairs/t0.tar")[:3000])
    bucket.put("zipped.tar", b"\x1f\x8b" + bytes(2000))
    for name in ("cut", "zipped"):
        with pytest.raises(DataError, match="a whole, uncompressed tar"):
            WebDatasetSource((f"{url}/{name}.tar",))
    with pytest.raises(DataError, match="no picture .*elsewhere/.*data.image_roots"):
        open_source(config_of(url, image_root=f"{url}/elsewhere"), "train", 0)
    bucket.forbidden = True
    for train in ((f"{url}/pairs/*.tar",), (f"{url}/lists/l.json",), (f"{url}/set",)):
        with pytest.raises(
            DataError, match="access denied: Anonymous caller.*may read. .*Storage Object Viewer"
        ):
            open_source(config_of(url, train=train, cache="unused"), "train", 0)


def test_a_missing_picture_is_replaced_and_a_refusing_bucket_ends_the_run(local, bucket):
    config = config_of(bucket.url, train=(f"{bucket.url}/lists/l.json",), max_skipped_share=1.0)
    source = open_source(config, "train", 0)
    tokenizer = build_tokenizer(config, source)
    del bucket.objects["photos/deep/3.jpg"]
    assert "deep/3.jpg" in "".join(ImageList(source, 16).dropped)
    with train_batches(config, tokenizer, 0, source=source) as batches:
        epoch = [next(batches) for _ in range(2)]
        assert sum(batch["skipped_B"].sum() for batch in epoch) == 1
        bucket.forbidden = True
        with pytest.raises(DataError, match="access denied"):
            for _ in range(20):
                next(batches)


# ------------------------------------------------------------------------------------------- copies


def test_a_prepared_folder_is_copied_once(local, bucket, tmp_path):
    config = config_of(bucket.url, train=(f"{bucket.url}/set",), cache=str(tmp_path / "cache"))
    wanted = open_source(replace(config, train=(str(local / "set"),)), "train", 0)
    source = open_source(config, "train", 0)
    assert [source[i] for i in range(27)] == [wanted[i] for i in range(27)]
    assert source.identity() == wanted.identity() and not source.remote
    folder = tmp_path / "cache" / bucket.name / "set" / read_manifest(local / "set")["id"]
    shards = sorted(path.name for path in (local / "set").glob("*.arrayrecord"))
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        *shards[:2],
        "manifest.json",
        *shards[2:],
    ]
    assert len([name for name in reads(bucket) if "arrayrecord" in name]) == len(shards) == 4
    open_source(config, "train", 0)
    assert reads(bucket) == ["set%2Fmanifest.json"]  # whether it is still the same
    (folder / shards[0]).write_bytes(b"cut")
    left = folder / f"{shards[1]}.1-1.part"
    left.write_bytes(b"of a process that was killed")
    open_source(config, "train", 0)
    assert reads(bucket)[1:] == [f"set%2F{shards[0]}"] and not left.exists()


def test_processes_that_start_at_once_copy_once(bucket, tmp_path, monkeypatch):
    """Two threads stand for them: a lock holds between any two openings of its file."""
    slow, real = threading.Event(), reading.read_bytes

    def read_bytes(path, *args):
        if path.endswith(".arrayrecord"):
            slow.wait(0.2)
        return real(path, *args)

    monkeypatch.setattr(reading, "read_bytes", read_bytes)
    folders = []
    ask = lambda: folders.append(local_folder(f"{bucket.url}/set", str(tmp_path)))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3 and len(set(folders)) == 1
    assert len([name for name in reads(bucket) if "arrayrecord" in name]) == 4


def test_a_copy_that_cannot_be_made(bucket, tmp_path, monkeypatch):
    url, cache = f"{bucket.url}/set", str(tmp_path / "cache")
    with pytest.raises(
        ConfigError, match="without data.cache.*set data.cache .*or mount the bucket"
    ):
        open_corpus(config_of("", train=(url,)), "train", 0)
    with pytest.raises(ConfigError, match="a folder on a local disk"):
        config_of("", cache=url).validate()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match="GB are to be copied, with 0.0 GB free in .*larger disk"):
        local_folder(url, cache)
    monkeypatch.undo()
    Path(tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="a folder to write to"):
        local_folder(url, str(tmp_path / "file"))
    name = "set/pairs-00001.arrayrecord"
    whole = bucket.get(name)
    bucket.put(name, whole[:-7])
    with pytest.raises(
        DataError, match=f"{len(whole) - 7} bytes, but {len(whole)} in the manifest"
    ):
        local_folder(url, cache)
    del bucket.objects[name]
    with pytest.raises(DataError, match="pairs-00001.arrayrecord: missing"):
        local_folder(url, cache)
    bucket.put(name, whole)
    real = reading.read_bytes
    broken = lambda path, *args: real(path, *args)[: -1 if path.endswith(name) else None]  # noqa: E731
    monkeypatch.setattr(reading, "read_bytes", broken)
    with pytest.raises(DataError, match="shorter than it was"):
        local_folder(url, cache)
    assert not list(Path(cache).rglob("*.part")) and not list(Path(cache).rglob("pairs-00001*"))
    monkeypatch.undo()
    assert os.path.getsize(Path(local_folder(url, cache), "pairs-00001.arrayrecord")) == len(whole)


def test_tfds_is_read_from_a_copy_of_its_split(tmp_path, monkeypatch):
    from data.test_tfds import write_coco

    from nas_jax.data import tfds_coco, tfds_source
    from nas_jax.data.tfds_source import TfdsSource, local_entry

    files = write_coco(tmp_path / "coco", 5)
    folder, _ = tfds_coco.prepare(**files, data_dir=str(tmp_path / "tfds"))
    direct, cache = TfdsSource(f"tfds:{folder}:train"), str(tmp_path / "cache")
    with fake_gcs.bucket() as bucket:
        upload(bucket, Path(folder), "coco/1.0.0/")
        bucket.put(
            "coco/1.0.0/coco_captions_from_json-test.array_record-00000-of-00001", b"not asked for"
        )
        url = f"tfds:{bucket.url}/coco/1.0.0"
        config = config_of("", train=(f"{url}:train[:50%]",), cache=cache)
        half = open_corpus(config, "train", 0)
        source = TfdsSource(local_entry(url, cache))
        assert [source[i] for i in range(5)] == [direct[i] for i in range(5)] and len(half) in (
            2,
            3,
        )
        assert len([name for name in reads(bucket) if "array_record" in name]) == 1
        for entry, message in (
            (f"{url}:val", "without ArrayRecord files of val.*test, train"),
            (
                f"tfds:{bucket.url}/coco:train",
                f"no dataset_info.json.*write tfds:{bucket.url}/coco/1.0.0",
            ),
        ):
            with pytest.raises(DataError, match=message):
                local_entry(entry, cache)
        with pytest.raises(ConfigError, match="without data.cache"):
            local_entry(url, "")
    there = SimpleNamespace(data_dir=url.removeprefix("tfds:"))  # as TFDS_DATA_DIR may say
    monkeypatch.setattr(tfds_source, "_builder", lambda name: there)
    with pytest.raises(DataError, match=f"write {url}:test"):
        tfds_source.TfdsSource("tfds:coco:test")


def test_prepare_refuses_a_bucket():
    for words in (
        ["gs://b/*.tar", "--out", "x"],
        ["a.tar", "--out", "gs://b/x"],
        ["tfds:gs://b/c", "--out", "x"],
    ):
        with pytest.raises(ConfigError, match="in a bucket.*gcloud storage cp -r, or mount"):
            prepare_command(words, Console(enabled=False))


def test_the_cache_may_change_between_two_starts():
    assert "data.cache" in RESUMABLE

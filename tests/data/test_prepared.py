"""The prepared folder: what is read is what was written, and damage is an error that says where."""

import json
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data import hostile

from nas_jax.data import pipeline, prepared
from nas_jax.data.config import DataConfig
from nas_jax.data.pipeline import build_tokenizer, open_source, train_batches
from nas_jax.data.prepare import prepare, verify
from nas_jax.data.prepared import PreparedSource
from nas_jax.data.prepared_files import is_prepared, iter_about, read_manifest
from nas_jax.data.sources import Split, image_id_of
from nas_jax.data.tar_source import WebDatasetSource
from nas_jax.data.text_check import caption_report
from nas_jax.utils.errors import DataError
from nas_jax.utils.logging import Console

QUIET = Console(enabled=False)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    paths = []
    for number, count in enumerate((300, 7, 40)):
        members = []
        for i in range(count):
            members += hostile.sample(
                f"n{number}i{i}", hostile.jpeg(i), f"caption {i} of {number}", "!", "second, raw"
            )
        paths.append(hostile.write_tar(folder / f"{number}.tar", members))
    return tuple(paths)


@pytest.fixture(scope="module")
def folder(tars, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "set"
    prepare(tars, out, workers=0, console=QUIET)
    return out


def test_records_are_those_of_the_tars(tars, folder):
    direct, source = WebDatasetSource(tars), PreparedSource(folder)
    assert len(source) == len(direct) == 347
    for index in range(len(direct)):
        assert source[index] == direct[index]  # key, bytes, captions and id
        assert source.captions(index) == direct.captions(index) and source.key(index) == direct.key(
            index
        )
    assert source.name_first and source.key_of("dir/n0i1.png") == "dir/n0i1"
    assert source.identity() == read_manifest(folder)["id"]
    with pytest.raises(IndexError):
        source[347]
    with pytest.raises(IndexError):
        source[-1]


def test_a_holdout_keeps_the_same_keys_as_the_tars(tars, folder):
    parts = [
        (WebDatasetSource(tars, Split(name, 0.3)), PreparedSource(folder, Split(name, 0.3)))
        for name in ("train", "val")
    ]
    for direct, source in parts:
        assert [source[i] for i in range(len(source))] == [direct[i] for i in range(len(direct))]
    assert len({source.identity() for _, source in parts}) == 2
    with pytest.raises(DataError, match="no record"):
        PreparedSource(folder, Split("val", 1e-9))


def test_about_rows_describe_the_pictures(folder):
    rows = list(iter_about(folder))
    assert [row.image_id for row in rows] == [image_id_of(row.key) for row in rows]
    assert {(row.width, row.height, len(row.sha), len(row.phash)) for row in rows} == {
        (24, 16, 16, 32)
    }
    # The pictures of the three tars have the same seeds: equal files have equal hashes, others not.
    assert len({row.sha for row in rows}) == 300


def test_sources_cross_processes_small_and_serve_threads(folder, monkeypatch):
    monkeypatch.setattr(prepared, "_MAX_OPEN", 1)  # readers come and go all the time
    source = PreparedSource(folder)
    expected = [source[i].key for i in range(len(source))]
    source.captions(0)
    packed = pickle.dumps(source)
    assert len(packed) < 4000  # readers and rows stay behind
    copy, wrong = pickle.loads(packed), []

    def read(seed: int) -> None:
        for index in np.random.default_rng(seed).permutation(len(copy)).tolist():
            if copy[index].key != expected[index] or copy.key(index) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(copy._readers) <= 1


def test_a_flipped_byte_is_an_os_error_of_one_record(tars, tmp_path):
    out = tmp_path / "set"
    prepare(tars[2:], out, workers=0, console=QUIET)
    source = PreparedSource(out)
    target = source[20].image
    path = Path(source.files[0])
    data = bytearray(path.read_bytes())
    data[data.index(target) + len(target) // 2] ^= 1
    path.write_bytes(data)
    source = PreparedSource(out)
    failed = []
    for index in range(len(source)):
        try:
            assert source[index].key == f"n2i{index}"
        except OSError:
            failed.append(index)
    assert failed == [20]
    with pytest.raises(DataError, match="1 of 2 files"):
        verify(out, QUIET)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(source))[3]


def test_captions_that_cannot_be_read_end_no_run(tars, tmp_path, monkeypatch):
    """A flipped byte in an about file: 64 captions are neither scanned nor counted; their pictures
    are used.
    """
    out = tmp_path / "set"
    prepare(tars, out, workers=0, console=QUIET)
    path = out / "about-00000.arrayrecord"
    data = bytearray(path.read_bytes())
    data[6000] ^= 1  # in the second of five groups of rows
    path.write_bytes(data)
    warnings = []
    monkeypatch.setattr(
        pipeline.logging, "log_first_n", lambda level, text, n, *rest: warnings.append((text, n))
    )
    config = DataConfig(
        train=(str(out),), image_size=16, batch_size=64, vocab_size=200, text_length=12
    )
    config = replace(config, text_buckets=(4, 8), bucket_window=6)
    source = open_source(config, "train", 0)
    damaged = range(64, 128)
    for index in damaged:
        with pytest.raises(OSError):
            source.captions(index)
    tokenizer = build_tokenizer(config, source)
    assert len(warnings) == 64  # of which log_first_n prints the first
    assert caption_report(source, tokenizer, config).captions == 2 * (347 - 64)
    warnings.clear()
    with train_batches(config, tokenizer, seed=0, source=source) as stream:
        found = [next(stream) for _ in range(6)]
    assert {number for _, number in warnings} == {1} and len(warnings) >= 64
    assert not any(batch["skipped_B"].any() for batch in found)
    assert len(np.unique(np.concatenate([batch["record_B"] for batch in found]))) == 347


def test_folders_that_cannot_be_read(folder, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_manifest(tmp_path / "nothing")
    with pytest.raises(DataError, match="no manifest.json"):
        PreparedSource(tmp_path)
    (tmp_path / ".units").mkdir()
    assert not is_prepared(tmp_path)
    with pytest.raises(DataError, match="not finished.*same command"):
        PreparedSource(tmp_path)
    manifest = read_manifest(folder)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        PreparedSource(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest)[:100])
    with pytest.raises(DataError, match="a manifest"):
        PreparedSource(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="pairs-00000.arrayrecord.*No such file"):
        PreparedSource(tmp_path)
    for shard in manifest["shards"]:
        for name in ("file", "about"):
            (tmp_path / shard[name]).write_bytes((folder / shard[name]).read_bytes())
    assert len(PreparedSource(tmp_path)) == 347  # a copy reads like the original
    path = tmp_path / manifest["shards"][1]["file"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match="pairs-00001.arrayrecord.*bytes.*run nas_jax.data.prepare again"
    ):
        PreparedSource(tmp_path)


def test_training_gets_the_same_batches_as_from_the_tars(tars, folder):
    config = DataConfig(image_size=16, batch_size=64, vocab_size=200)
    batches = []
    for entries in ((str(folder),), tars):
        entry_config = replace(config, train=entries)
        source = open_source(entry_config, "train", 3)
        tokenizer = build_tokenizer(entry_config, source)
        with train_batches(entry_config, tokenizer, seed=3, source=source) as stream:
            batches.append([next(stream) for _ in range(7)])  # into the second epoch
    for prepared_batch, direct_batch in zip(*batches, strict=True):
        assert set(prepared_batch) == set(direct_batch)
        for name, value in prepared_batch.items():
            np.testing.assert_array_equal(value, direct_batch[name], err_msg=name)

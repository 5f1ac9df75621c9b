"""Sources from files: what they keep, what they count as lost, and what they refuse."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas_jax.data.albef_source import AlbefJsonSource
from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import linked_keys, open_corpus
from nas_jax.data.image_ops import decode
from nas_jax.data.prepare import prepare
from nas_jax.data.prepared import PreparedSource
from nas_jax.data.source_table import Strings
from nas_jax.data.sources import Split, expand, held_out, image_id_of
from nas_jax.data.tar_source import WebDatasetSource
from nas_jax.utils.errors import DataError
from nas_jax.utils.logging import Console


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def sample(key: str, value: int, *captions: str) -> dict[str, bytes]:
    text = {"caption": captions[0], "captions": list(captions)}
    return {f"{key}.png": png(value), f"{key}.json": json.dumps(text).encode()}


def read_all(source):
    return [source[i] for i in range(len(source))]


def test_webdataset_reads_captions_and_slices(tmp_path):
    odd = {
        "deep/c.txt": b"plain text\n",
        "deep/c.JPG": png(3),
        "d.json": b'{"caption": "..."}',  # nothing is left of it
        "d.webp": png(4),
        "e.json": b'{"caption": "words without a picture"}',
        "f.png": png(5),
        "g.json": b"{damaged",
        "g.png": png(6),
        "h.json": json.dumps({"caption": None}).encode(),  # as img2dataset writes them
        "h.txt": b"from the text file",
        "h.jpeg": png(7),
    }
    one = write_tar(
        tmp_path / "one.tar",
        sample("a", 1, "first a", "a again", "first a", "!") | sample("b", 2, "b") | odd,
    )
    two = write_tar(tmp_path / "two.tar", sample("b", 12, "other b"))
    source = pickle.loads(pickle.dumps(WebDatasetSource((one, two))))
    records = read_all(source)
    assert [(r.key, r.captions) for r in records] == [
        ("a", ("first a", "a again")),
        ("b", ("b",)),
        ("deep/c", ("plain text\n",)),
        ("h", ("from the text file",)),
        ("b", ("other b",)),
    ]
    assert [int(decode(r.image)[0, 0, 0]) for r in records] == [1, 2, 3, 7, 12]
    assert records[1].image_id == records[4].image_id == image_id_of("b") != records[0].image_id
    assert [source.file(i) for i in (3, 4)] == [one, two]
    assert source.report == {"no caption": 2, "no image": 1, "damaged json": 1}
    assert (
        source.report.examples["no caption"] == f"d in {one}"
        and "1 no image (like e in" in source.report.line()
    )
    assert len(WebDatasetSource((one, two), clean=False)) == 6  # "..." is a caption then
    with pytest.raises(IndexError):
        source[5]


def test_members_of_a_tar_become_the_samples_that_they_are(tmp_path):
    """Equal names in two folders, dots in names, suffixes: read in place and prepared alike."""
    members = {
        "./cats/0000.jpg": png(0), "./cats/0000.json": b'{"caption": "a cat"}',
        "./dogs/0000.png": png(1), "./dogs/0000.txt": b"a dog",
        "photo v1.2.JFIF": png(2), "photo v1.2.txt": b"dots", "photo v1.3.tiff": png(3),
        "photo v1.3.json": b'{"caption": "more dots"}',
        "v1.0/0000.gif": png(4), "v1.0/0000.txt": b"a folder with a dot",
        "neg.jpg": png(5), "neg.txt": b"true", "neg.neg_image.jpg": png(6), "neg.neg.txt": b"false",
        "two.input.jpg": png(7), "two.output.txt": b"of whom",
    }  # fmt: skip
    tar = write_tar(tmp_path / "x.tar", members)
    source = WebDatasetSource((tar,))
    prepare((tar,), tmp_path / "out", workers=0, max_lost=0.5, console=Console(enabled=False))
    prepared = PreparedSource(str(tmp_path / "out"))
    expected = {
        "cats/0000": "a cat", "dogs/0000": "a dog", "photo v1.2": "dots",
        "photo v1.3": "more dots", "v1.0/0000": "a folder with a dot", "neg": "true",
    }  # fmt: skip
    for read in (source, prepared):
        records = [read[index] for index in range(len(read))]
        assert {one.key: one.captions[0] for one in records} == expected
        values = [decode(one.image)[0, 0, 0] for one in records]
        assert values == [0, 1, 2, 3, 4, 5]  # each caption has its own picture
    assert source.report == {"no image": 1}
    assert "at the first dot of its name it has input.jpg" in source.report.line()
    assert source.key_of("dogs/0000.png") == "dogs/0000"


def test_albef_json_reads_captions_and_files(tmp_path):
    for name, value in (("x.png", 1), ("y.png", 2)):
        (tmp_path / name).write_bytes(png(value))
    entries = [
        {"image": "x.png", "caption": "one \u00e9", "image_id": 5},
        {"image": "y.png", "caption": ["two", "", "three"]},
        {"image": "x.png", "caption": "the same picture"},
        {"image": "z.png", "caption": [" "]},
    ]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(entries))
    source = pickle.loads(pickle.dumps(AlbefJsonSource((str(path),), str(tmp_path))))
    records = read_all(source)
    assert [r.captions for r in records] == [
        ("one \u00e9",),
        ("two", "three"),
        ("the same picture",),
    ]
    assert [int(decode(r.image)[0, 0, 0]) for r in records] == [1, 2, 1]
    assert records[0].image_id == records[2].image_id != records[1].image_id
    assert source.report == {"no caption": 1}


def test_holdout_parts_the_keys_alike_in_every_file(tmp_path):
    keys = [f"key{i}" for i in range(400)]
    for name, order in (("one", keys), ("two", keys[::-1])):
        write_tar(
            tmp_path / f"{name}.tar",
            {k: v for key in order for k, v in sample(key, 9, "c").items()},
        )
    quads = tmp_path / "pairs.jsonl"
    lines = [
        {"image_0": f"key{i}.png", "image_1": f"key{i + 1}.png"} for i in (*range(0, 100, 2), 1)
    ]
    quads.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    config = DataConfig(train=(str(tmp_path / "*.tar"),), holdout=0.25, quads=(str(quads),))
    train, val = (open_corpus(config, split, 0) for split in ("train", "val"))
    sides = [[source.key(i) for i in range(len(source))] for source in (train, val)]
    assert sorted(sides[0] + sides[1]) == sorted(2 * keys) and not set(sides[0]) & set(sides[1])
    assert 0.15 < len(sides[1]) / 800 < 0.35
    together = linked_keys(config)
    # key1 joins two lines
    assert together["key3"] == together["key0"] == "key0" != together["key4"]
    for i in range(0, 100, 2):
        assert (f"key{i}" in sides[1]) == (f"key{i + 1}" in sides[1])
    alone = Split("val", 0.25)
    assert {key for key in keys if alone.keeps(key)} != set(sides[1])
    shares = [np.mean([held_out(key, share) for key in keys]) for share in (0, 0.1, 0.5, 1)]
    assert (
        shares[0] == 0
        and shares[3] == 1
        and abs(shares[1] - 0.1) < 0.06
        and abs(shares[2] - 0.5) < 0.1
    )
    assert all(held_out(key, 0.5) for key in keys if held_out(key, 0.1))  # a larger share only adds
    # The split is part of what a checkpoint means: it may not change with a new version of
    # anything.
    assert image_id_of("1f600") == 275824981
    assert "".join(str(int(held_out(f"1f6{i:02x}", 0.5))) for i in range(16)) == "0000110010000111"


def test_strings():
    texts = ["", "a", "\u00e9\U0001f600", "", "\ud800"]
    packed = pickle.loads(pickle.dumps(Strings(texts)))
    assert [packed[i] for i in range(len(packed))] == texts


def refuses(match, build, *args, **options):
    with pytest.raises(DataError, match=match) as caught:
        build(*args, **options)
    assert "\n" not in str(caught.value)


def test_broken_tars_are_named(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", sample("a", 1, "a") | sample("b", 2, "b"))
    data = Path(whole).read_bytes()
    cut = tmp_path / "cut.tar"
    with tarfile.open(whole) as tar:
        last = tar.getmembers()[-1]
    # In the middle of a member, of a header, at the end of the last member, and nothing at all.
    for size in (last.offset_data + 3, last.offset + 100, last.offset_data + 512, last.offset, 0):
        cut.write_bytes(data[:size])
        refuses(r"cut\.tar: .*whole, uncompressed tar", WebDatasetSource, (whole, str(cut)))
    packed = tmp_path / "packed.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(whole, "a.png")
    refuses("packed.tar.gz.*uncompressed", WebDatasetSource, (str(packed),))
    refuses("no.tar: No such file", WebDatasetSource, (str(tmp_path / "no.tar"),))
    refuses(
        "no file '.*absent.*check data.train",
        expand,
        (str(tmp_path / "absent-*.tar"),),
        "data.train",
    )
    twice = {"a.png": png(1), "./a.png": png(2), "a.txt": b"a"}
    refuses(
        r"two members '\./a.png'", WebDatasetSource, (write_tar(tmp_path / "twice.tar", twice),)
    )
    bare = {"a.png": png(1), "a.json": b'{"text": "wrong field"}'}
    refuses(
        r"no usable pairs.*1 no caption.*field caption",
        WebDatasetSource,
        (write_tar(tmp_path / "b.tar", bare),),
    )


def test_broken_lists_are_named(tmp_path):
    def written(value):
        path = tmp_path / "list.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return (str(path),)

    (tmp_path / "x.png").write_bytes(png(1))
    root, good = str(tmp_path), {"image": "x.png", "caption": "x"}
    refuses("No such file", AlbefJsonSource, (str(tmp_path / "no.json"),), root)
    refuses("a json list", AlbefJsonSource, written("[{"), root)
    refuses("holds dict; expected a list", AlbefJsonSource, written(good), root)
    refuses("holds an empty list", AlbefJsonSource, written([]), root)
    refuses(
        "entry 0, with file, caption; expected image",
        AlbefJsonSource,
        written([{"file": 1, "caption": ""}]),
        root,
    )
    refuses("entry 1, with image;", AlbefJsonSource, written([good, {"image": "x.png"}]), root)
    refuses("entry 1, with int;", AlbefJsonSource, written([good, 5]), root)
    refuses(
        f"no picture 'elsewhere/x.png'.*set data.image_root='{root}' .now 'elsewhere'.",
        AlbefJsonSource,
        written([good]),
        "elsewhere",
    )
    refuses(
        "no usable pairs.*1 no caption",
        AlbefJsonSource,
        written([{"image": "x.png", "caption": "?"}]),
        root,
    )

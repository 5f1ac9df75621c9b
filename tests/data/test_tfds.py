"""TFDS without TensorFlow: a mocked ref_coco, and COCO captions through our own builder."""

import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nas_jax.data import tfds_coco
from nas_jax.data.config import DataConfig
from nas_jax.data.sources import Split, held_out, image_id_of
from nas_jax.data.tfds_source import NoCaption, TfdsSource
from nas_jax.utils.errors import DataError


@pytest.fixture(autouse=True)
def no_tensorflow():
    yield
    assert "tensorflow" not in sys.modules


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (16 + seed, 24, 3), dtype=np.uint8)
    Image.fromarray(values).save(buffer, "JPEG")
    return buffer.getvalue()


def ref_coco_record(number: int) -> bytes:
    """A stored record as TensorFlow writes it: two objects, with two phrases and one."""
    from tensorflow_datasets.proto import tf_example_pb2

    values = {"image": [jpeg(number)], "image/id": [70 + number]}
    for place, count in (("objects", 2), ("coco_annotations", 1)):
        values |= {f"{place}/{name}": [1] * count for name in ("id", "area", "label")}
        values[f"{place}/bbox"] = [0.0, 0.0, 0.5, 0.5] * count
    values |= {"objects/gt_box_index": [0, 0], "objects/mask": [b"not decoded"] * 2}
    phrases = [f"left dog {number}".encode(), b"the dog", "größere Katze".encode()]
    for name, flat in (("raw", phrases), ("refexp_id", [1, 2, 3])):
        values |= {f"objects/refexp/{name}/ragged_flat_values": flat}
        values |= {f"objects/refexp/{name}/ragged_row_lengths_0": [2, 1]}
    example = tf_example_pb2.Example()
    for name, value in values.items():
        kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(value[0])]
        getattr(example.features.feature[name], kind).value.extend(value)
    return example.SerializeToString()


@pytest.fixture
def ref_coco():
    """The real builder and its features over three records.

    The mock's own records are pixels, not stored bytes.
    """

    def as_data_source(self, split, decoders=None, **kwargs):
        return [
            self.info.features.deserialize_example_np(ref_coco_record(n), decoders=decoders)
            for n in range(3)
        ]

    with tfds.testing.mock_data(num_examples=3, as_data_source_fn=as_data_source):
        yield


def test_mocked_ref_coco(ref_coco):
    source = TfdsSource("tfds:ref_coco/refcoco_unc:validation")
    assert len(source) == 3
    for number in range(3):
        record = source[number]
        assert (
            record.key
            == source.key(number)
            == f"ref_coco/{70 + number}"
            == source.key_of(str(70 + number))
        )
        assert (
            record.captions
            == source.captions(number)
            == (f"left dog {number}", "the dog", "größere Katze")
        )
        assert record.image_id == image_id_of(record.key)
        assert record.image == jpeg(number)
    with pytest.raises(IndexError):
        source[3]


def write_coco(folder, count: int = 9, captions=None) -> dict[str, str]:
    """COCO's official files: pictures, and a json in which captions stand in no order."""
    (folder / "train2014").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        name = f"COCO_train2014_{number:012d}.jpg"
        (folder / "train2014" / name).write_bytes(jpeg(number))
        images.append(
            {"id": 500 - number, "file_name": name, "height": 1, "width": 1, "license": 1}
        )
        texts = (
            captions(number)
            if captions
            else [f"Café {number}, {k}." for k in range(1 + number % 5)]
        )
        annotations += [
            {"image_id": 500 - number, "id": 10 * number + k, "caption": t}
            for k, t in enumerate(texts)
        ]
    content = {
        "info": {},
        "images": images,
        "annotations": annotations[::2] + annotations[1::2],
        "licenses": [],
    }
    (folder / "captions.json").write_text(json.dumps(content))
    return {"annotations": str(folder / "captions.json"), "images": str(folder / "train2014")}


def test_coco_through_our_builder(tmp_path):
    files = write_coco(tmp_path)
    folder, count = tfds_coco.prepare(**files, data_dir=str(tmp_path / "out"))
    assert count == 9 and tfds_coco.prepare(**files, data_dir=str(tmp_path / "out")) == (folder, 9)
    source = pickle.loads(pickle.dumps(TfdsSource(f"tfds:{folder}:train")))
    assert source.files == (folder,) and source.file(0) == folder
    records = {source[n].key: (source[n], source.captions(n)) for n in range(len(source))}
    assert len(records) == 9
    for number in range(9):
        record, captions = records[f"coco_captions_from_json/{500 - number}"]
        assert record.image == jpeg(number)
        assert captions == record.captions
        assert set(captions) == {f"Café {number}, {k}." for k in range(1 + number % 5)}
    part = TfdsSource(f"tfds:{folder}:train[:4]")
    assert len(part) == 4 and part[2] == source[2] and part.identity() != source.identity()


def test_holdout_parts_the_records(tmp_path):
    folder, _ = tfds_coco.prepare(**write_coco(tmp_path, 9), data_dir=str(tmp_path / "out"))
    whole = TfdsSource(f"tfds:{folder}:train")
    sides = [TfdsSource(f"tfds:{folder}:train", Split(name, 0.4)) for name in ("train", "val")]
    keys = [[side.key(n) for n in range(len(side))] for side in sides]
    assert sorted(keys[0] + keys[1]) == sorted(whole.key(n) for n in range(9))
    assert all(held_out(key, 0.4) for key in keys[1]) and keys[1]
    assert pickle.loads(pickle.dumps(sides[1]))[0].key == keys[1][0]
    assert len({whole.identity(), *(side.identity() for side in sides)}) == 3


def test_captions_that_cleaning_empties(tmp_path):
    files = write_coco(tmp_path, 4, lambda number: ["...", "a dog"] if number else ["...", "!"])
    folder, _ = tfds_coco.prepare(**files, data_dir=str(tmp_path / "out"))
    source = TfdsSource(f"tfds:{folder}:train")
    bare = next(n for n in range(4) if source.key(n).endswith("/500"))
    assert [source.captions(n) for n in range(4) if n != bare] == [
        ("a dog",)
    ] * 3 and source.captions(bare) == ()
    with pytest.raises(NoCaption):
        source[bare]
    assert TfdsSource(f"tfds:{folder}:train", clean=False)[bare].captions == ("...", "!")
    kept = TfdsSource(f"tfds:{folder}:train", Split("train", 1e-9))
    assert len(kept) == 3 and dict(kept.report) == {"no caption": 1}


def test_training_reads_it_in_workers(tmp_path):
    """Readers open anew in a worker process."""
    folder, _ = tfds_coco.prepare(**write_coco(tmp_path), data_dir=str(tmp_path / "out"))
    (tmp_path / "source.pickle").write_bytes(pickle.dumps(TfdsSource(f"tfds:{folder}:train")))
    code = (
        "import pickle, sys; s = pickle.load(open(sys.argv[1], 'rb'));"
        "print(len(s), s[4].key, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "source.pickle"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["9", TfdsSource(f"tfds:{folder}:train").key(4), "False"]


def test_refusals(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "none"))
    folder, _ = tfds_coco.prepare(**write_coco(tmp_path, 3), data_dir=str(tmp_path / "out"))
    for entry, options, says in (
        ("tfds:", {}, "tfds:NAME"),
        ("tfds:no_such_set", {}, "does not know"),
        ("tfds:ref_coco/no_config", {}, "no_config"),
        ("tfds:mnist", {}, "download_and_prepare()"),
        ("tfds:coco_captions", {}, "nas_jax.data.tfds_coco"),
        (f"tfds:{tmp_path}/missing:train", {}, "no dataset_info.json"),
        (f"tfds:{tmp_path}/out", {}, f"tfds:{folder}"),
        (f"tfds:{folder}:val", {}, "(train)"),
        (f"tfds:{folder}", {"captions_field": "captions"}, "captions/text, image/filename"),
    ):
        with pytest.raises(DataError) as caught:
            TfdsSource(entry, **options)
        assert (
            says in str(caught.value)
            and "\n" not in str(caught.value)
            and len(str(caught.value)) < 600
        )
    shard = next(name for name in os.listdir(folder) if "array_record" in name)
    os.truncate(os.path.join(folder, shard), os.path.getsize(os.path.join(folder, shard)) // 2)
    with pytest.raises((DataError, OSError)):
        TfdsSource(f"tfds:{folder}:train")[0]


def test_captions_feature_is_guessed_or_refused():
    from nas_jax.data.tfds_source import _caption_feature

    features = tfds.features
    one = features.FeaturesDict(
        {
            "image": features.Image(),
            "image/filename": features.Text(),
            "texts": features.Sequence(features.Text()),
        }
    )
    assert _caption_feature(one, "x", "", asked=False) == ("texts",)
    two = features.FeaturesDict(
        {"image": features.Image(), "title": features.Text(), "alt": features.Text()}
    )
    assert _caption_feature(two, "x", "alt", asked=True) == ("alt",)
    with pytest.raises(DataError, match=r"alt, title.*data\.tfds_captions"):
        _caption_feature(two, "x", "", asked=False)
    with pytest.raises(DataError, match="none"):
        _caption_feature(features.FeaturesDict({"image": features.Image()}), "x", "", asked=False)


def test_builder_refuses_what_does_not_fit(tmp_path, capsys):
    files = write_coco(tmp_path, 3)
    other = tmp_path / "instances.json"
    arguments = ["--images", files["images"], "--data-dir", str(tmp_path / "out")]
    for content, says in (
        ('{"images": [{"id": 1, "file_name": "a.jpg"}]}', "annotations"),
        ('{"images": [], "annotations": [{"image_id": 1, "id": 2, "bbox": []}]}', "caption"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}', "a.jpg"),
        ("{", "json"),
        ('{"images": [], "annotations": []}', "0 of 0"),
    ):
        other.write_text(content)
        assert tfds_coco.main(["--annotations", str(other), *arguments]) == 3
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    os.remove(os.path.join(files["images"], "COCO_train2014_000000000001.jpg"))
    assert tfds_coco.main(["--annotations", files["annotations"], *arguments]) == 3
    assert "1 of 3" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert tfds_coco.main(["--annotations", str(tmp_path / "nothing.json"), *arguments]) == 3


def test_config_takes_the_entry(tmp_path):
    from nas_jax.data.pipeline import open_source, train_batches
    from nas_jax.data.tokenizer import learn_wordpiece

    folder, _ = tfds_coco.prepare(**write_coco(tmp_path), data_dir=str(tmp_path / "out"))
    config = DataConfig(train=(f"tfds:{folder}:train",), image_size=16, batch_size=4, vocab_size=64)
    tokenizer = learn_wordpiece(["café 1 2 3"], 64, False)
    with train_batches(
        config, tokenizer, seed=0, source=open_source(config, "train", 0)
    ) as batches:
        batch = next(batches)
    assert batch["image_BxHxWx3"].shape == (4, 16, 16, 3) and not batch["skipped_B"].any()

"""What a batch holds: the arrays of every batch, bit by bit, and those wanted beside them."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import tiny
from data import hostile

from nas_jax.data.config import DataConfig
from nas_jax.data.pipeline import build_tokenizer, open_source, train_batches
from nas_jax.data.readers import Field, Picture, SecondView, batch_spec
from nas_jax.utils.errors import ConfigError, DataError

HOST = ("skipped_B", "record_B")


@dataclass(frozen=True)
class Label(Field):
    """A field that a method's own file may have: a number from the key."""

    def spec(self, config):
        return {"label_B": ((), np.int32)}

    def read(self, example):
        return {"label_B": np.int32(example.record.key.removeprefix("k"))}


@dataclass(frozen=True)
class Others(Field):
    """Several texts a picture, with draws of its own."""

    count: int

    def spec(self, config):
        shape = (self.count, config.text_length)
        return {"ids_BxCxL": (shape, np.int32), "mask_BxCxL": (shape, np.bool_)}

    def read(self, example):
        numbers = example.rng("others").integers(0, 24, self.count)
        return {"texts": [example.prepared(f"Number {number}!") for number in numbers]}

    def stack(self, values, encode):
        ids_BxCxL, mask_BxCxL = encode([value["texts"] for value in values])
        return {"ids_BxCxL": ids_BxCxL, "mask_BxCxL": mask_BxCxL}


WANTS = (SecondView(), Label(), Others(3))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two tars with weights, captions of several lengths, one picture that cannot be decoded."""
    folder, paths = tmp_path_factory.mktemp("tars"), []
    for number, (name, count) in enumerate((("one", 24), ("two", 12))):
        rng, members = np.random.default_rng(number), []
        for index in range(count):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            image = hostile.encoded(hostile.Image.fromarray(pixels), "PNG")
            image = image[:300] if (name, index) == ("one", 5) else image
            texts = f"picture {index} in red", "a word more " * (index % 3) + f"number {index}"
            members += hostile.sample(f"k{index}", image, *texts, suffix="png")
        paths.append(hostile.write_tar(folder / f"{name}.tar", members))
    return DataConfig(
        train=tuple(paths),
        weights=(3.0, 1.0),
        image_size=16,
        batch_size=4,
        flip=True,
        vocab_size=200,
        text_length=12,
        text_buckets=(6, 9),
        bucket_window=4,
        max_skipped_share=1.0,
    )


@pytest.fixture(scope="module")
def tokenizer(config):
    return build_tokenizer(config, open_source(config, "train", 0))


def take(config, tokenizer, steps, **options):
    with train_batches(config, tokenizer, 3, **options) as batches:
        return [next(batches) for _ in range(steps)]


def digest(batches):
    """Of names, shapes, dtypes and values, apart from those of replaced pairs."""
    found = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(batch.items()):
            if name not in HOST:
                value[batch["skipped_B"]] = 0
            found.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return found.hexdigest()[:32]


def assert_same(ones, others, names):
    for one, other in zip(ones, others, strict=True):
        for name in names:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_batches_keep_their_bits(config, tokenizer):
    """Recorded before replacements were drawn evenly, and the reader was a file of its own. Runs
    are continued and compared over versions: a change here changes their data. Only another version
    of opencv may excuse it.
    """
    plain = {"weights": (), "text_buckets": (), "crop_scale": (), "flip": False}
    plain = replace(config, rand_augment_ops=0, **plain)
    batches = take(config, tokenizer, 12, start_step=2)
    assert sum(batch["skipped_B"].sum() for batch in batches) == 2
    assert digest(batches) == "10dbecc5bf113ab5d35dfdfe5f077f15"
    assert digest(take(plain, tokenizer, 12, start_step=2)) == "e5a26a3dd09029f541b3a8511a168b4f"


def test_what_is_wanted_comes_beside_and_changes_nothing_else(config, tokenizer):
    standard = take(config, tokenizer, 8)
    batches = take(config, tokenizer, 8, wants=WANTS)
    assert_same(standard, batches, standard[0])
    for batch in batches:
        first, second = batch["image_BxHxWx3"], batch["image2_BxHxWx3"]
        assert (first != second).any(axis=(1, 2, 3)).all()
        # `record_B` is the place drawn: in the second tar from 24 on, and replaced if unreadable
        other_B = batch["label_B"] != batch["record_B"] % 24
        np.testing.assert_array_equal(other_B, batch["skipped_B"])
    # Without crop and augmentation both views are the picture.
    still = replace(config, crop_scale=(), rand_augment_ops=0, flip=False)
    (batch,) = take(still, tokenizer, 1, wants=[SecondView()])
    np.testing.assert_array_equal(batch["image_BxHxWx3"], batch["image2_BxHxWx3"])
    # What a field draws depends on nothing but the draw and its own name.
    assert_same(batches, take(config, tokenizer, 8, wants=WANTS[::-1]), batches[0])
    assert_same(batches, take(config, tokenizer, 8, wants=WANTS[:1] * 2), ["image2_BxHxWx3"])
    texts = [tuple(row[:5]) for batch in batches for row in np.concatenate(batch["ids_BxCxL"])]
    assert len(set(texts)) > 10


def test_what_is_wanted_is_the_same_however_it_is_read(config, tokenizer):
    config = replace(config, text_buckets=())
    batches = take(config, tokenizer, 4, start_step=3, wants=WANTS)
    one = take(replace(config, threads=1), tokenizer, 7, wants=WANTS)[3:]
    workers = take(replace(config, workers=2), tokenizer, 4, start_step=3, wants=WANTS)
    halves = [
        take(config, tokenizer, 4, start_step=3, process_index=p, process_count=2, wants=WANTS)
        for p in (0, 1)
    ]
    joined = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(*halves, strict=True)
    ]
    for others in (one, workers, joined):
        assert_same(batches, others, batches[0])
    # A source that is read side by side, as a bucket is.
    source = open_source(config, "train", 0)
    source.remote = True
    assert_same(
        batches, take(config, tokenizer, 4, start_step=3, source=source, wants=WANTS), batches[0]
    )


@pytest.mark.parametrize("wants", [(), (SecondView(),), (Label(), Others(2)), (Picture(),), WANTS])
def test_the_spec_is_that_of_the_batches(config, tokenizer, wants):
    for batch in take(config, tokenizer, 4, wants=wants):
        length = batch["token_ids_BxL"].shape[1]
        spec = batch_spec(config, 4, wants, length)
        assert spec.keys() == batch.keys() - set(HOST)
        for name, array in spec.items():
            assert (batch[name].shape, batch[name].dtype) == (array.shape, array.dtype), name
    assert batch_spec(config, 8, wants) == batch_spec(config, 8, wants, config.text_length)
    # The hand-made batch of the other tests has the arrays of every batch.
    made = {name: (x.shape, x.dtype) for name, x in tiny.batch(size=6, length=8).items()}
    said = batch_spec(replace(config, image_size=16), 6, length=8)
    assert made == {name: (x.shape, x.dtype) for name, x in said.items()}


@dataclass(frozen=True)
class Wrong(Label):
    """Gives something else than it says."""

    def read(self, example):
        return {"label_B": np.float64(1)}


@dataclass(frozen=True)
class Uneven(Label):
    """Arrays of several shapes."""

    def read(self, example):
        return {"label_B": np.zeros(example.draw.index + 1, np.int32)}


@dataclass(frozen=True)
class Missing(Label):
    """Has a file of its own for each pair, one of which is not there."""

    def read(self, example):
        if example.record.key == "k3":
            raise FileNotFoundError("k3.label")
        return super().read(example)


def test_fields_that_contradict_each_other_or_their_spec(config, tokenizer):
    with pytest.raises(ConfigError, match=r"the batch array label_B of both Label\(\) and Wrong"):
        train_batches(config, tokenizer, 0, wants=(Label(), Wrong()))
    with pytest.raises(ConfigError, match="label_B"):
        batch_spec(config, 4, (Label(), Wrong()))
    for workers in (0, 1):
        with pytest.raises(
            DataError, match=r"Wrong\(\) gives label_B float64\[\]; expected label_B int32\[\] of"
        ):
            take(replace(config, workers=workers), tokenizer, 1, wants=(Wrong(),))
    with pytest.raises(DataError, match=r"Uneven\(\) gives all input arrays must have the same"):
        take(config, tokenizer, 1, wants=(Uneven(),))
    # What cannot be read is replaced, whichever field reads it.
    batches = take(config, tokenizer, 12, wants=(Missing(),))
    labels = np.concatenate([batch["label_B"] for batch in batches])
    records = np.concatenate([batch["record_B"] for batch in batches])
    assert 3 not in labels and len(set(labels[records % 24 == 3])) > 1

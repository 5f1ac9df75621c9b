"""Entries to sources, mixtures of them, and batches of captions of like length."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nas_jax.data.albef_source import AlbefJsonSource
from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import open_corpus
from nas_jax.data.pipeline import build_tokenizer, open_source, train_batches
from nas_jax.data.scenes import SceneSource
from nas_jax.data.tar_source import WebDatasetSource
from nas_jax.parallel.mesh import make_mesh
from nas_jax.train import loop
from nas_jax.train.config import TrainConfig
from nas_jax.utils.errors import ConfigError, DataError


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, count):
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            caption = "word " * (1 + 3 * index % 19)  # lengths in disorder
            for suffix, data in (
                ("png", png(index)),
                ("json", json.dumps({"caption": caption}).encode()),
            ):
                info = tarfile.TarInfo(f"{index}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture
def files(tmp_path):
    for name, count in (("a", 24), ("b", 12)):
        write_tar(tmp_path / f"{name}.tar", count)
    for index in range(6):
        (tmp_path / f"{index}.png").write_bytes(png(200 + index))
    entries = [{"image": f"{index}.png", "caption": f"entry {index}"} for index in range(6)]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    return tmp_path


def config_of(files, *names, **changes):
    train = tuple(name if name == "scenes" else str(files / name) for name in names)
    settings = dict(
        train=train,
        image_root=str(files),
        image_size=16,
        batch_size=4,
        vocab_size=64,
        crop_scale=(),
        rand_augment_ops=0,
        num_train=10,
    )
    return DataConfig(**settings | changes)


def take(config, steps, tokenizer=None, **options):
    tokenizer = tokenizer or build_tokenizer(config, open_source(config, "train", 0))
    with train_batches(config, tokenizer, 3, **options) as batches:
        return [next(batches) for _ in range(steps)]


def test_entries_say_what_they_are(files):
    corpus = open_corpus(config_of(files, "a.tar", "b.tar", "list.json", "scenes"), "train", 0)
    assert [type(part) for part in corpus.parts] == [WebDatasetSource, AlbefJsonSource, SceneSource]
    assert len(corpus) == 36 + 6 + 10 and corpus.starts == (0, 36, 42, 52)
    assert [corpus.key(i) for i in (0, 24, 36, 42)] == ["0", "0", "0.png", "train-0-0"]
    # Neighbouring tars are one collection, in which a key is one picture; entries with weights are
    # not.
    assert corpus[0].image_id == corpus[24].image_id
    weighted = config_of(files, "a.tar", "b.tar", weights=(1.0, 1.0))
    apart, shared = (
        open_corpus(replace(weighted, shared_keys=shared), "train", 0) for shared in (False, True)
    )
    assert apart[0].image_id != apart[24].image_id and shared[0].image_id == shared[24].image_id
    assert apart[0].image_id == shared[0].image_id >= 0 and apart[24].image_id >= 0
    identities = {
        open_corpus(config_of(files, *names), "train", 0).identity()
        for names in (("a.tar",), ("b.tar",))
    }
    assert len(identities | {corpus.identity()}) == 3
    with pytest.raises(DataError, match="'absent' of data.train.*tfds:NAME.*correct the path"):
        open_corpus(config_of(files, train=("absent",)), "train", 0)
    for changes, match in (
        ({"weights": (1.0, 2.0)}, "data.weights=.*each of the 1 entries"),
        ({"weights": (0.0,)}, "above 0"),
        ({"text_buckets": (30,)}, "data.text_buckets=.*below data.text_length"),
    ):
        with pytest.raises(ConfigError, match=match):
            replace(config_of(files, "a.tar"), **changes).validate()


def test_a_mixture_has_its_shares_in_each_batch_and_epochs_of_each_part(files):
    config = config_of(files, "a.tar", "list.json", weights=(3.0, 1.0))
    batches = take(config, 24)
    parts = [Counter(int(record >= 24) for record in batch["record_B"]) for batch in batches]
    assert parts == [{0: 3, 1: 1}] * 24
    drawn = np.concatenate([batch["record_B"] for batch in batches])
    first, second = drawn[drawn < 24], drawn[drawn >= 24]
    assert all(set(first[start : start + 24]) == set(range(24)) for start in range(0, 72, 24))
    assert all(set(second[start : start + 6]) == set(range(24, 30)) for start in range(0, 24, 6))
    assert len(set(map(tuple, first.reshape(3, 24)))) == 3
    again = take(config, 4, start_step=20)
    np.testing.assert_array_equal(
        [b["record_B"] for b in again], [b["record_B"] for b in batches[20:]]
    )


def test_captions_of_like_length_share_a_batch(files):
    config = config_of(
        files, "a.tar", text_length=22, text_buckets=(6, 9, 12, 15, 18), bucket_window=6
    )
    tokenizer = build_tokenizer(config, open_source(config, "train", 0))
    plain = take(replace(config, text_buckets=()), 12, tokenizer)
    batches = take(config, 12, tokenizer)

    def padding(batches):
        return 1 - np.mean(np.concatenate([batch["token_mask_BxL"].ravel() for batch in batches]))

    assert {batch["token_ids_BxL"].shape[1] for batch in plain} == {22}
    lengths = {batch["token_ids_BxL"].shape[1] for batch in batches}
    assert lengths <= {6, 9, 12, 15, 18, 22} and len(lengths) > 2
    assert padding(batches) < 0.25 < 0.4 < padding(plain)
    # The same captions, each whole and once an epoch (six batches), with the same words.
    for start in (0, 6):
        bags = []
        for some in (plain, batches):
            chosen = some[start : start + 6]
            assert sorted(np.concatenate([batch["record_B"] for batch in chosen])) == list(
                range(24)
            )
            bags.append(
                Counter(int(mask.sum()) for batch in chosen for mask in batch["token_mask_BxL"])
            )
        assert bags[0] == bags[1]
    # Neither hosts, workers nor the start change a batch.
    for options in ({"workers": 2}, {"threads": 1}):
        for one, other in zip(
            batches[7:], take(replace(config, **options), 5, tokenizer, start_step=7), strict=True
        ):
            assert all((one[name] == other[name]).all() for name in one)
    halves = [
        take(config, 5, tokenizer, start_step=7, process_index=p, process_count=2) for p in (0, 1)
    ]
    for whole, *parts in zip(batches[7:], *halves, strict=True):
        assert all(
            (np.concatenate([part[name] for part in parts]) == whole[name]).all() for name in whole
        )


@flax.struct.dataclass
class Seen:
    """Stands for a model: counts how often each record came."""

    step: jax.Array
    params: jax.Array


def test_no_sample_of_an_epoch_is_repeated_or_lost_over_restarts(files, tmp_path):
    """Through the loop and its checkpoints; each start has other workers, as another machine
    would.
    """
    config = config_of(files, "a.tar", "b.tar", text_buckets=(10,), bucket_window=3)
    source = open_source(config, "train", 0)
    tokenizer = build_tokenizer(config, source)
    ids_R = np.asarray([source[index].image_id for index in range(len(source))])

    def step(state, batch, stage):
        new = (batch["image_id_B"][:, None] == jnp.asarray(ids_R)).sum(0)
        return Seen(state.step + 1, state.params + new), {"loss": jnp.float32(0)}

    for total, workers in ((4, 0), (9, 1), (18, 2)):
        training = loop.Training(
            step,
            lambda: Seen(jnp.int32(0), jnp.zeros(36, jnp.int32)),
            lambda start, workers=workers: train_batches(
                replace(config, workers=workers), tokenizer, 0, start, source=source
            ),
            total,
            make_mesh(),
            data_id=source.identity(),
        )
        config_of_run = TrainConfig(steps=total, log_every=1)
        result = loop.run(training, config_of_run, tmp_path / "run", {})
        # The ids of b.tar are also in a.tar, so those count both: nine steps are an epoch of 36.
        twice_R = np.asarray([np.sum(ids_R == image_id) for image_id in ids_R])
        if total == 9:
            np.testing.assert_array_equal(result.state.params, twice_R)
    np.testing.assert_array_equal(result.state.params, 2 * twice_R)


def test_each_collection_has_its_own_image_root(tmp_path):
    """Equal paths below two roots are two pictures; training and validation apart."""
    for number, root in enumerate(("coco", "vg", "test")):
        (tmp_path / root).mkdir()
        (tmp_path / root / "0.png").write_bytes(png(number))
        (tmp_path / f"{root}.json").write_text(json.dumps([{"image": "0.png", "caption": root}]))
    lists = {name: str(tmp_path / f"{name}.json") for name in ("coco", "vg", "test")}
    roots = {name: str(tmp_path / name) for name in lists}
    config = DataConfig(
        train=(lists["coco"], lists["vg"]),
        val=(lists["test"],),
        image_roots=(roots["coco"], roots["vg"]),
        val_image_roots=(roots["test"],),
    )
    opened, held = open_corpus(config, "train", 0), open_corpus(config, "val", 0)
    assert [opened.captions(i) for i in range(2)] == [("coco",), ("vg",)]
    found = [opened[0], opened[1], held[0]]
    for record, root in zip(found, ("coco", "vg", "test"), strict=True):
        assert record.image == (tmp_path / root / "0.png").read_bytes()
    assert found[0].image_id != found[1].image_id
    # One root for all is as before: neighbouring lists are one source.
    same = replace(config, image_roots=(), image_root=roots["coco"])
    assert len(open_corpus(same, "train", 0).parts) == 1
    alike = replace(config, image_roots=(roots["coco"],) * 2)
    assert len(open_corpus(alike, "train", 0).parts) == 1
    # A wrong one names its own field, and what to put there.
    (tmp_path / "test/0.png").rename(tmp_path / "test/1.png")
    (tmp_path / "test.json").write_text('[{"image": "1.png", "caption": "x"}]')
    line = "no picture '.*coco/1.png'.*put '.*/test' .now '.*coco'. for it in data.val_image_roots"
    with pytest.raises(DataError, match=line):
        open_corpus(replace(same, val_image_roots=()), "val", 0)
    with pytest.raises(ConfigError, match="data.image_roots with 1 folders; expected one for each"):
        replace(config, image_roots=("a",)).validate()
    with pytest.raises(ConfigError, match="val_image_roots with 1 .* each of the 0 entries"):
        replace(config, val=()).validate()

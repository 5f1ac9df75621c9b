"""Batches that depend on seed and step alone, replaced pictures, and evaluation sets from files."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from absl import logging as absl_logging
from PIL import Image

from nas_jax.data.config import DataConfig
from nas_jax.data.pair_files import ImageList, file_eval_sets
from nas_jax.data.pipeline import (
    build_tokenizer,
    open_eval_sets,
    open_source,
    steps_per_epoch,
    train_batches,
)
from nas_jax.data.readers import SKIP_REASONS
from nas_jax.data.text_check import caption_report
from nas_jax.utils.errors import ConfigError, DataError

COLOURS = ("red", "green", "blue", "black", "white", "pink")


def write_tar(path, count, broken=(), value=0):
    rng = np.random.default_rng(value)
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
            image = buffer.getvalue()[:300] if index in broken else buffer.getvalue()
            text = {
                "caption": f"picture {index} in {COLOURS[index % 6]}",
                "captions": [f"Number {index}."],
            }
            for suffix, data in (("png", image), ("json", json.dumps(text).encode())):
                info = tarfile.TarInfo(f"k{index}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture
def config(tmp_path):
    path = write_tar(tmp_path / "one.tar", 24)
    return DataConfig(train=(path,), image_size=16, batch_size=4, flip=True, vocab_size=200)


def take(config, tokenizer, steps, seed=3, **options):
    with train_batches(config, tokenizer, seed, **options) as batches:
        return [next(batches) for _ in range(steps)]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture
def tokenizer(config):
    return build_tokenizer(config, open_source(config, "train", 0))


def test_batches_have_the_contract_of_the_loop(config, tokenizer):
    batch = take(config, tokenizer, 1)[0]
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "image_BxHxWx3": ((4, 16, 16, 3), "uint8"),
        "token_ids_BxL": ((4, 25), "int32"),
        "token_mask_BxL": ((4, 25), "bool"),
        "image_id_B": ((4,), "int32"),
        "skipped_B": ((4,), "bool"),
        "record_B": ((4,), "int64"),
    }
    assert not batch["skipped_B"].any() and (batch["token_ids_BxL"][:, 0] == tokenizer.cls_id).all()


def test_a_batch_is_a_function_of_seed_and_step(config, tokenizer):
    wanted = take(config, tokenizer, 10)
    assert_same(wanted, take(replace(config, threads=1), tokenizer, 10))
    assert_same(wanted[7:], take(config, tokenizer, 3, start_step=7))
    assert (
        take(config, tokenizer, 1, seed=4)[0]["image_BxHxWx3"] != wanted[0]["image_BxHxWx3"]
    ).any()
    halves = [
        take(config, tokenizer, 5, start_step=5, process_index=p, process_count=2) for p in (0, 1)
    ]
    joined = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(*halves, strict=True)
    ]
    assert_same(wanted[5:], joined)
    # The same pair looks different in another epoch: crop, caption and augmentation are drawn anew.
    ids_N = np.concatenate([batch["image_id_B"] for batch in wanted])
    images = np.concatenate([batch["image_BxHxWx3"] for batch in wanted])
    first, second = np.nonzero(ids_N == ids_N[0])[0][:2]
    assert second >= 24 and (images[first] != images[second]).any()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(config, tokenizer, workers):
    wanted = take(config, tokenizer, 4, start_step=5)
    assert_same(
        wanted, take(replace(config, workers=workers, threads=1), tokenizer, 4, start_step=5)
    )


def test_each_epoch_is_another_order_of_all_pairs(config, tokenizer):
    batches = take(config, tokenizer, 18)
    epochs = np.concatenate([batch["image_id_B"] for batch in batches]).reshape(3, 24)
    assert all(len(set(epoch)) == 24 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    texts = {tuple(row) for batch in batches for row in batch["token_ids_BxL"]}
    assert 24 < len(texts) <= 48  # two captions a pair, both drawn


def test_plain_pixels_without_augmentation(config, tokenizer):
    plain = replace(config, crop_scale=(), flip=False, rand_augment_ops=0)
    source = open_source(plain, "train", 0)
    images = {source[i].image_id: image for i, image in enumerate(ImageList(source, 16))}
    batch = take(plain, tokenizer, 1)[0]
    for image_id, image in zip(batch["image_id_B"], batch["image_BxHxWx3"], strict=True):
        np.testing.assert_array_equal(image, images[image_id])
    mirrored = take(replace(plain, flip=True), tokenizer, 12)
    flips = [
        (image[:, ::-1] == images[image_id]).all()
        for batch in mirrored
        for image_id, image in zip(batch["image_id_B"], batch["image_BxHxWx3"], strict=True)
    ]
    assert 0.25 < np.mean(flips) < 0.75


def test_unreadable_pictures_are_replaced_and_counted(config, tokenizer, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *args: warnings.append(text % args))
    broken = {3, 4, 23}
    path = write_tar(tmp_path / "broken.tar", 24, broken)
    bad = replace(config, train=(path,), max_skipped_share=0.2)
    batches = take(bad, tokenizer, 60)
    assert_same(batches[6:8], take(bad, tokenizer, 2, start_step=6))
    source = open_source(bad, "train", 0)
    ids = [source[i].image_id for i in range(24)]
    shown_N = np.concatenate([batch["image_id_B"] for batch in batches])
    skipped_N = np.concatenate([batch["skipped_B"] for batch in batches])
    assert skipped_N.sum() == 3 * 10  # each of them once in each of ten epochs
    others = {ids.index(image_id) for image_id in shown_N[skipped_N]}
    assert len(others) > 10 and not others & broken  # 30 draws among 21
    assert {ids.index(image_id) for image_id in shown_N} == set(range(24)) - broken
    assert len(warnings) == 2 and "damaged image: k" in warnings[0] and path in warnings[0]
    with (
        pytest.raises(
            DataError,
            match=r"unreadable pictures of 200, like k\d+ of .*broken.tar \(damaged image\)",
        ),
        train_batches(replace(bad, max_skipped_share=0.05), tokenizer, 3) as endless,
    ):
        for _ in range(60):
            next(endless)
    all_bad = replace(
        config, train=(write_tar(tmp_path / "all.tar", 8, range(8)),), max_skipped_share=1.0
    )
    with pytest.raises(DataError, match=r"damaged image \(k\d of .*all.tar, and so are 100 others"):
        take(all_bad, tokenizer, 1)


def test_a_missing_file_is_replaced_too(tmp_path, tokenizer):
    for index in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    entries = [{"image": f"{index}.png", "caption": f"number {index}"} for index in range(6)]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    config = DataConfig(
        train=(str(tmp_path / "list.json"),), image_root=str(tmp_path), image_size=16, batch_size=6
    )
    (tmp_path / "2.png").unlink()
    batch = take(config, tokenizer, 1)[0]
    assert batch["skipped_B"].sum() == 1 and len(set(batch["image_id_B"])) == 5


def test_closed_batches_end(config, tokenizer):
    batches = train_batches(config, tokenizer, 0)
    next(batches)
    batches.close()
    batches.close()
    assert next(batches, None) is None


def test_epochs_and_captions_are_counted(config, tokenizer, monkeypatch):
    warnings = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *args: warnings.append(text % args))
    source = open_source(config, "train", 0)
    assert (
        steps_per_epoch(config, source) == 6
        and steps_per_epoch(replace(config, batch_size=7), source) == 3
    )
    with pytest.raises(DataError, match="24 training pairs for data.batch_size=25"):
        steps_per_epoch(replace(config, batch_size=25), source)
    report = caption_report(source, tokenizer, config)
    assert (report.captions, report.cut_by_max_words, report.cut_by_text_length) == (48, 0, 0)
    assert not warnings
    # "picture 7 in red" has four words and five tokens; "number 7" has two and three.
    short = replace(config, max_words=3, text_length=3)
    report = caption_report(source, tokenizer, short)
    assert (report.captions, report.cut_by_max_words, report.cut_by_text_length) == (48, 24, 24)
    assert len(warnings) == 1 and "data.text_length=3; the longest has 4 tokens" in warnings[0]


@pytest.fixture
def pair_config(tmp_path):
    """Two artists, 40 pictures each; foils of either, and quads of the first."""
    for name, value in (("noto-00", 1), ("open", 2)):
        write_tar(tmp_path / f"{name}.tar", 40, broken=(7,), value=value)
    for name in ("noto", "open"):
        lines = [
            {
                "image": f"k{i}.png",
                "caption": f"Picture {i}!",
                "foil": f"picture {i + 1}",
                "category": "number",
            }
            for i in range(40)
        ]
        (tmp_path / f"{name}-foils.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lines = [
        {
            "image_0": f"k{i}.png",
            "image_1": f"k{i + 1}.png",
            "caption_0": f"{i} one",
            "caption_1": f"one {i}",
        }
        for i in range(0, 40, 2)
    ]
    (tmp_path / "noto-quads.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return DataConfig(
        train=(str(tmp_path / "*.tar"),),
        holdout=0.5,
        foils=(str(tmp_path / "*-foils.jsonl"),),
        quads=(str(tmp_path / "noto-quads.jsonl"),),
        image_size=16,
        batch_size=4,
        vocab_size=300,
    )


def test_eval_sets_from_files(pair_config):
    (eval_set,) = open_eval_sets(pair_config, 0)
    val = open_source(pair_config, "val", 0)
    keys = [val.key(i) for i in range(len(val)) if val.key(i) != "k7"]  # one cannot be decoded
    assert eval_set.name == "val" and len(eval_set.images) == len(eval_set.captions) == len(keys)
    assert eval_set.captions == tuple(
        (f"picture {key[1:]} in {COLOURS[int(key[1:]) % 6]}",) for key in keys
    )
    half = len(keys) // 2
    assert (
        eval_set.image_ids[:half] == eval_set.image_ids[half:]
        and len(set(eval_set.image_ids)) == half
    )
    image = eval_set.images[0]
    assert (
        image.shape == (16, 16, 3)
        and image.dtype == np.uint8
        and (image != eval_set.images[half]).any()
    )
    # The foils of a file are about the pictures of its own artist.
    assert [foil.image for foil in eval_set.foils] == list(range(len(keys)))
    for foil in eval_set.foils:
        number = keys[foil.image][1:]
        assert (foil.caption, foil.foil, foil.category) == (
            f"picture {number}",
            f"picture {int(number) + 1}",
            "number",
        )
    assert 0 < len(eval_set.quads) < 20
    for quad in eval_set.quads:
        assert max(quad.image_0, quad.image_1) < half
        assert (quad.caption_0, quad.caption_1) == (
            f"{keys[quad.image_0][1:]} one",
            f"one {keys[quad.image_0][1:]}",
        )
        assert int(keys[quad.image_1][1:]) == int(keys[quad.image_0][1:]) + 1
    # Both pictures of a line are on one side, so no line is lost to the split.
    train = open_source(pair_config, "train", 0)
    trained = {train.key(i) for i in range(len(train))}
    assert not trained & set(keys)
    assert len(eval_set.quads) == sum(f"k{i}" not in trained for i in range(0, 40, 2) if i != 6)


def test_separate_validation_and_lazy_images(pair_config, tmp_path, monkeypatch):
    monkeypatch.setattr("nas_jax.data.pair_files.CACHE_BYTES", 0)
    separate = replace(pair_config, holdout=0.0, val=(str(tmp_path / "open.tar"),), quads=())
    (lazy,) = file_eval_sets(separate)
    assert len(lazy.images) == 39 and lazy.images[3].shape == (16, 16, 3)
    monkeypatch.undo()
    for one, other in zip(lazy.images, file_eval_sets(separate)[0].images, strict=True):
        np.testing.assert_array_equal(one, other)
    # "noto" names no validation tar, so its foils are looked up everywhere.
    assert len(lazy.foils) == 2 * 39
    assert file_eval_sets(replace(separate, val=(), foils=())) == ()


def test_bad_pair_files_are_named(pair_config, tmp_path):
    path = tmp_path / "bad-foils.jsonl"
    bad = replace(pair_config, foils=(str(path),), quads=())
    good = {"image": "k1", "caption": "a", "foil": "b", "category": "c"}
    for text, match in (
        (json.dumps(good) + "\n{", "bad-foils.jsonl, line 2"),
        (json.dumps({"image": "k1", "caption": "a"}), "line 1, without 'foil'"),
        (
            json.dumps(good | {"image": "elsewhere"}),
            "none of its 1 lines is about validation pictures",
        ),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=match):
            file_eval_sets(bad)
    with pytest.raises(DataError, match="no file .*data.foils"):
        file_eval_sets(replace(bad, foils=("absent.jsonl",)))


def test_the_draws_of_a_record_depend_on_the_seed(config, tokenizer):
    """The order of the pairs does too, so pictures are compared pair by pair."""

    def crops(seed):
        batch = take(
            replace(config, batch_size=len(open_source(config, "train", 0))),
            tokenizer,
            1,
            seed=seed,
        )[0]
        order = np.argsort(batch["image_id_B"], kind="stable")
        return batch["image_BxHxWx3"][order]

    assert (crops(0) != crops(1)).any(axis=(1, 2, 3)).mean() > 0.5


@pytest.mark.parametrize(
    ("world", "text_length", "vocab_size", "categories"),
    [("small", 17, 137, 6), ("large", 20, 176, 7)],  # the lengths and sizes in docs/data.md
)
def test_scenes_need_no_files(world, text_length, vocab_size, categories):
    config = DataConfig(
        num_train=400,
        image_size=32,
        batch_size=4,
        crop_scale=(),
        scene_world=world,
        text_length=text_length,
        vocab_size=vocab_size,
    )
    source = open_source(config, "train", 5)
    tokenizer = build_tokenizer(config, source)
    assert caption_report(source, tokenizer, config).cut_by_text_length == 0
    first = take(config, tokenizer, 3, seed=5)
    assert_same(first[2:], take(config, tokenizer, 1, seed=5, start_step=2))
    sets = open_eval_sets(config, 5)
    assert [eval_set.name for eval_set in sets] == ["val", "heldout"]
    for eval_set in sets:
        texts = [text for foil in eval_set.foils for text in (foil.caption, foil.foil)]
        ids_BxL, _ = tokenizer.encode(texts, config.text_length)
        assert not (ids_BxL == tokenizer.unk_id).any()
        assert max(map(tokenizer.token_count, texts)) == text_length
        assert {tokenizer.token_count(word) for word in " ".join(texts).split()} == {2}
        assert len({foil.category for foil in eval_set.foils}) == categories


def test_bad_settings_are_named(config, tokenizer):
    DataConfig().validate()
    for change, match in (
        ({"train": ()}, "an empty data.train"),
        ({"image_size": 8}, "data.image_size=8; expected at least 16"),
        ({"crop_scale": (0.5,)}, "data.crop_scale"),
        ({"crop_scale": (0.9, 0.5)}, "data.crop_scale"),
        ({"holdout": 1.0}, "data.holdout=1.0"),
        ({"holdout": 0.1, "val": ("x",)}, "both data.holdout and data.val"),
        ({"foils": ("x",)}, "data.foils or data.quads without"),
        ({"max_skipped_share": 2.0}, "data.max_skipped_share"),
        ({"rand_augment_magnitude": 11}, "data.rand_augment_magnitude=11"),
        ({"threads": 0}, "data.threads=0"),
        ({"scene_world": "huge"}, "data.scene_world='huge'; expected one of small, large"),
        ({"train": ("scenes",)}, "data.flip=True with scenes"),
        (
            {"train": ("scenes",), "flip": False, "holdout": 0.1},
            "data.holdout=0.1 with scenes alone",
        ),
    ):
        with pytest.raises(ConfigError, match=match):
            replace(config, **change).validate()
    with pytest.raises(ConfigError, match="data.batch_size=4 for 3 processes; .*use 6"):
        train_batches(config, tokenizer, 0, process_count=3)
    with pytest.raises(ConfigError, match="split 'test'"):
        open_source(config, "test", 0)
    with pytest.raises(ConfigError, match="without data.holdout or data.val"):
        open_source(config, "val", 0)
    assert set(SKIP_REASONS) >= {"missing file", "damaged image"}

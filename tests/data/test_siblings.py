"""Variations of one source next to each other: the order of records, and scenes in pairs."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from nas_jax.data.config import DataConfig
from nas_jax.data.pipeline import build_tokenizer, open_source, train_batches
from nas_jax.data.readers import SourceId, batch_spec
from nas_jax.data.records import source_of
from nas_jax.data.scene_captions import holds
from nas_jax.data.scenes import SceneSource
from nas_jax.data.siblings import Siblings, groups_of
from nas_jax.data.worlds import WORLDS
from nas_jax.utils.errors import ConfigError

GROUPS = [[0, 1, 2, 3], [4, 5], [6], [7, 8, 9]]


def test_blocks_hold_variations_of_one_source_filled_up_with_others():
    drawn = Siblings(GROUPS, 3, seed=0)
    blocks = [[int(drawn[3 * block + place]) for place in range(3)] for block in range(40)]
    seen = Counter()
    for block in blocks:
        group = next(group for group in GROUPS if block[0] in group)
        own = block[: len(group)]
        assert set(own) <= set(group) and len(set(own)) == len(own)  # without replacement
        assert all(0 <= record < 10 for record in block)
        seen[tuple(group)] += 1
    assert set(seen.values()) == {10}  # each source once an epoch
    assert len({tuple(block) for block in blocks if block[0] < 4}) > 3  # not always the same three
    again = pickle.loads(pickle.dumps(Siblings(GROUPS, 3, seed=0)))
    assert [again[i] for i in (5, 77, 0)] == [drawn[i] for i in (5, 77, 0)]
    other = Siblings(GROUPS, 3, seed=1)
    assert [other[i] for i in range(30)] != [drawn[i] for i in range(30)]


def test_a_source_is_the_key_up_to_its_last_mark():
    assert source_of("a#b#1") == "a#b" and source_of("a") == "a" and source_of("#1") == "#1"


@pytest.mark.parametrize("world", list(WORLDS))
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_scenes_in_pairs_contradict_each_other_and_differ_in_little(world, split):
    source = SceneSource(split, 1200, 0, 48, WORLDS[world], varied=True)
    plain = SceneSource(split, 600, 0, 48, WORLDS[world])
    same_places = 0
    for k in range(600):  # enough to meet every kind of variation
        (one, captions), (other, varied) = source.spec(2 * k), source.spec(2 * k + 1)
        assert one == plain.spec(k)[0]
        assert all(holds(text, one) for text in captions) and all(holds(t, other) for t in varied)
        assert not any(holds(text, other) for text in captions)
        assert not any(holds(text, one) for text in varied)
        places = [{(item.x, item.y) for item in scene.items} for scene in (one, other)]
        same_places += places[0] == places[1]
        looks = [{(item.shape, item.colour, item.size) for item in s.items} for s in (one, other)]
        # only where the side is what differs, things stand elsewhere
        assert places[0] == places[1] or looks[0] == looks[1]
        if split == "train":
            assert other.pairs.isdisjoint(WORLDS[world].held_out)
    assert 500 <= same_places < 600
    assert source.key(6) == f"{split}-0-3#0" and source.key(7) == f"{split}-0-3#1"
    assert source.identity() != SceneSource(split, 1200, 0, 48, WORLDS[world]).identity()


def test_batches_have_pairs_side_by_side_and_their_source():
    config = DataConfig(
        num_train=40, image_size=16, crop_scale=(), rand_augment_ops=0, text_length=17,
        vocab_size=200, batch_size=8, threads=1, siblings=2, scene_variations=True,
    )  # fmt: skip
    source = open_source(config, "train", 0)
    assert groups_of(source) == [[2 * k, 2 * k + 1] for k in range(20)]
    tokenizer = build_tokenizer(config, source)
    with train_batches(config, tokenizer, 0, source=source, wants=(SourceId(),)) as batches:
        found = [next(batches) for _ in range(5)]
    for batch in found:
        assert (
            batch["source_id_B"].shape == batch_spec(config, 8, (SourceId(),))["source_id_B"].shape
        )
        ids, sources = batch["image_id_B"], batch["source_id_B"]
        np.testing.assert_array_equal(sources[::2], sources[1::2])
        np.testing.assert_array_equal(ids[::2] ^ 1, ids[1::2])
        assert len(set(sources)) == 4
    everything = np.concatenate([batch["image_id_B"] for batch in found])
    assert sorted(everything) == list(range(40))  # an epoch
    alone = replace(config, siblings=0)
    with train_batches(alone, tokenizer, 0, source=source) as batches:
        ids = next(batches)["image_id_B"]
    assert (ids[::2] ^ 1 != ids[1::2]).any()


@pytest.mark.parametrize(
    "bad", [{"siblings": 3}, {"siblings": 1}, {"siblings": 2, "weights": (1.0,)},
            {"siblings": 2, "text_buckets": (8,)}, {"scene_variations": True, "num_train": 41}],
)  # fmt: skip
def test_settings_that_cannot_be_met_are_refused(bad):
    with pytest.raises(ConfigError):
        DataConfig(batch_size=8, **bad).validate()

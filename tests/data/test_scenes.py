"""Scenes: every caption is true, every foil is false, no text tells which, and the pictures show
what is said.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from nas_jax.data import scenes as S
from nas_jax.utils.errors import ConfigError, DataError

SIZES = {"num_images": 60, "foils_per_category": 40, "num_quads": 40}


@pytest.fixture(scope="module")
def sets():
    """(EvalSet, the scenes behind its pictures) by name."""
    return {name: S._scene_eval_set(name, 7, 32, **SIZES) for name in ("val", "heldout")}


def test_training_captions_are_true_specific_and_never_held_out():
    source = S.SceneSource("train", 400, 3, 32)
    specs = [source.spec(i) for i in range(len(source))]
    assert frozenset().union(*(scene.pairs for scene, _ in specs)) == set(S.SEEN)
    for scene, captions in specs:
        assert 2 <= len(captions) <= 4 and len(set(captions)) == len(captions)
        assert all(S.holds(caption, scene) and len(caption.split()) <= 16 for caption in captions)
    words = {word for _, captions in specs for caption in captions for word in caption.split()}
    assert len(words) <= 45 and all(word == word.lower() and word.isalpha() for word in words)
    # In-batch negatives are presumed false: a caption holds in one other scene of a thousand at
    # most.
    said = [S.parse(captions[0]) for _, captions in specs]
    wrong = sum(S.holds(said[i], specs[j][0]) for i in range(200) for j in range(200) if i != j)
    assert wrong / (200 * 199) < 1e-3


def test_a_record_depends_on_split_seed_and_index_alone():
    source = S.SceneSource("train", 50, 0, 48)
    again = pickle.loads(pickle.dumps(source))
    list(again[i] for i in range(20))  # what was read before must not matter
    records = [source[i] for i in range(30)]
    for i, record in enumerate(records):
        assert (
            record.image.shape == (48, 48, 3)
            and record.image.dtype == np.uint8
            and record.image_id == i
        )
        assert (
            again[i].image.tobytes() == record.image.tobytes()
            and again[i].captions == record.captions
        )
    others = [
        S.SceneSource("val", 50, 0, 48),
        S.SceneSource("heldout", 50, 0, 48),
        S.SceneSource("train", 50, 1, 48),
    ]
    pictures = [r.image.tobytes() for r in records] + [
        other[i].image.tobytes() for other in others for i in range(30)
    ]
    assert len(set(pictures)) == len(pictures)
    assert len({record.key for record in records}) == len(records)
    with pytest.raises(IndexError):
        source[50]


@pytest.mark.parametrize("name", ["val", "heldout"])
def test_eval_set_says_the_truth(sets, name):
    eval_set, scenes = sets[name]
    assert len(eval_set.images) == len(eval_set.captions) == len(scenes) == 60 + 6 * 40 + 2 * 40
    for scene in scenes:
        assert bool(scene.pairs & set(S.HELD_OUT)) == (name == "heldout")
    for i, captions in enumerate(eval_set.captions):
        assert bool(captions) == (i < 60)
        assert all(
            S.holds(caption, scene) == (i == j)
            for caption in captions
            for j, scene in enumerate(scenes[:60])
        )
    assert Counter(foil.category for foil in eval_set.foils) == dict.fromkeys(S.FOILS, 40)
    for foil in eval_set.foils:
        assert S.holds(foil.caption, scenes[foil.image]) and not S.holds(
            foil.foil, scenes[foil.image]
        ), foil
    assert Counter(quad.category for quad in eval_set.quads) == {"binding": 20, "relation": 20}
    for quad in eval_set.quads:
        truth = [
            [S.holds(text, scenes[i]) for i in (quad.image_0, quad.image_1)]
            for text in (quad.caption_0, quad.caption_1)
        ]
        assert truth == [[True, False], [False, True]], quad
        assert sorted(quad.caption_0.split()) == sorted(quad.caption_1.split())


@pytest.mark.parametrize("name", ["val", "heldout"])
def test_foils_are_minimal_and_the_text_alone_does_not_tell(sets, name):
    changed_words = {
        "existence": 1,
        "number": 2,
        "colour": 1,
        "binding": 2,
        "size": 1,
        "relation": 1,
    }
    for category, most in changed_words.items():
        foils = [foil for foil in sets[name][0].foils if foil.category == category]
        pairs = [(foil.caption.split(), foil.foil.split()) for foil in foils]
        for caption, foil in pairs:
            assert (
                len(caption) == len(foil)
                and 1 <= sum(a != b for a, b in zip(caption, foil, strict=True)) <= most
            )
        # The strongest form of "chance": the same texts on both sides, so every scorer of texts is
        # right half the time.
        assert Counter(foil.caption for foil in foils) == Counter(foil.foil for foil in foils)
        # One word, or two in a row, as the rule: no better than chance.
        grams = [
            [set(text) | set(zip(text, text[1:], strict=False)) for text in pair] for pair in pairs
        ]
        for gram in set().union(*(side for pair in grams for side in pair)):
            assert sum((gram in caption) - (gram in foil) for caption, foil in grams) == 0


def test_held_out_edits_stay_held_out(sets):
    for foil in sets["heldout"][0].foils:
        novel = [
            sorted(p in S.HELD_OUT for p in S.parse(text).pairs)
            for text in (foil.caption, foil.foil)
        ]
        assert novel[0] == novel[1] and any(novel[0])
        if foil.category == "colour":  # the edit concerns the held-out noun, not its neighbour
            before, after = (S.parse(text).pairs for text in (foil.caption, foil.foil))
            assert all(
                a in S.HELD_OUT and b in S.HELD_OUT
                for a, b in zip(before, after, strict=True)
                if a != b
            )


def test_the_checker_catches_a_wrong_caption_and_a_corrupted_foil(sets):
    def item(shape, colour, size, x, y):
        return S.Item(shape, colour, size, x, y, S.SIZES[size], S.COLOURS[colour])

    scene = S.SceneSpec(
        (item("circle", "red", "big", 0.3, 0.5), item("star", "blue", "small", 0.7, 0.6)),
        (250, 250, 250),
    )
    for caption, truth in {
        "a big red circle to the left of a small blue star": True,
        "the blue star is to the right of the red circle": True,
        "a blue star to the left of a red circle": False,
        "a red circle above a blue star": False,  # further apart sideways than up and down
        "a small red circle to the left of a blue star": False,
        "a red star to the left of a blue circle": False,
        "one red circle and one blue star": True,
        "two red circles and one blue star": False,
        "a picture of a red circle and a blue star and no cross": True,
        "a picture of a red circle and a blue star and a cross": False,
        "a red circle and a blue star and no star": False,
    }.items():
        assert S.holds(caption, scene) is truth, caption
    eval_set, scenes = sets["val"]
    for foil in eval_set.foils[::20]:  # a "foil" that is only another wording of the truth
        spare = S.draw_wording(S.parse(foil.caption), np.random.default_rng(0)).text()
        assert S.holds(spare, scenes[foil.image])
    for text in (
        "a red dog",
        "a red circle left of a blue star",
        "two red circle and one blue star",
        "",
        "red",
    ):
        with pytest.raises(DataError, match="scene grammar"):
            S.parse(text)


def test_pictures_show_the_scene():
    source = S.SceneSource("heldout", 150, 5, 48)
    for i in range(len(source)):
        scene, image = source.spec(i)[0], source[i].image
        for item in scene.items:
            assert (
                np.abs(image[int(item.y * 48), int(item.x * 48)].astype(int) - item.rgb).max() <= 1
            )
            reach = item.radius * 1.15
            assert reach <= min(item.x, item.y) and max(item.x, item.y) <= 1 - reach
        for a, b in combinations(scene.items, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) > 1.05 * (a.radius + b.radius)

    def drawn(shape, size, image_size):
        scene = S.SceneSpec(
            (S.Item(shape, "black", size, 0.5, 0.5, S.SIZES[size], (0, 0, 0)),), (255, 255, 255)
        )
        return 1 - S.render(scene, image_size)[..., 0] / 255.0

    small = {shape: drawn(shape, "small", 32) for shape in S.SHAPES}
    for shape, ink in small.items():
        assert drawn(shape, "big", 32).sum() > 2 * ink.sum()
    for a, b in combinations(S.SHAPES, 2):  # unlike even where they are smallest
        assert np.abs(small[a] - small[b]).sum() > 0.15 * min(small[a].sum(), small[b].sum()), (
            a,
            b,
        )


def test_public_sets_repeat_and_parts_can_be_left_out():
    first, second = (
        S.scene_eval_sets(1, 32, num_images=4, foils_per_category=2, num_quads=0) for _ in range(2)
    )
    assert [one.name for one in first] == ["val", "heldout"] and first[0].quads == ()
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(np.stack(one.images), np.stack(two.images)) and one.foils == two.foils
        assert one.captions == two.captions


@pytest.mark.parametrize(
    "change",
    [
        {"num_images": -1},
        {"foils_per_category": 3},
        {"num_quads": 5},
        {"seed": -1},
        {"image_size": 8},
    ],
)
def test_bad_eval_requests_are_named(change):
    good = {"seed": 0, "image_size": 32, "num_images": 2, "foils_per_category": 2, "num_quads": 2}
    with pytest.raises(ConfigError, match=next(iter(change))):
        S.scene_eval_sets(**(good | change))


@pytest.mark.parametrize("setting", ["num_images", "num_quads"])
def test_more_than_the_grammar_offers_is_refused(monkeypatch, setting):
    monkeypatch.setattr(S, "SEEN", tuple(("red", shape) for shape in S.SHAPES))
    counts = {"num_images": 0, "foils_per_category": 0, "num_quads": 0, setting: 2000}
    with pytest.raises(ConfigError, match=setting):
        S.scene_eval_sets(0, 32, **counts)


@pytest.mark.parametrize(
    "change", [{"split": "test"}, {"size": 0}, {"seed": 2**32}, {"image_size": 0}]
)
def test_bad_sources_are_named(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        S.SceneSource(**({"split": "train", "size": 1, "seed": 0, "image_size": 32} | change))


def test_balance_check_has_teeth(sets):
    foils = [foil for foil in sets["val"][0].foils if foil.category == "existence"]
    foils[0] = replace(foils[0], foil=foils[0].caption)
    assert Counter(foil.caption for foil in foils) != Counter(foil.foil for foil in foils)

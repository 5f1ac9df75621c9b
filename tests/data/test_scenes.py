"""Scenes: every caption is true, every foil is false, no text tells which, and the pictures show
what is said.
"""

from __future__ import annotations

import hashlib
import math
import pickle
from collections import Counter
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from nas_jax.data import scene_sets
from nas_jax.data.scene_captions import Noun, Statement, holds, parse
from nas_jax.data.scene_pictures import COLOURS, CORNERS, FILLS, Item, SceneSpec, label, render
from nas_jax.data.scene_sets import Counts, foil_categories, scene_eval_set, scene_eval_sets
from nas_jax.data.scenes import SceneSource, draw_wording
from nas_jax.data.worlds import LARGE, SIZES, SMALL, WORLDS, World
from nas_jax.utils.errors import ConfigError, DataError

COUNTS = Counts(num_images=60, foils_per_category=40, num_quads=40)


@pytest.fixture(scope="module", params=WORLDS.values(), ids=WORLDS)
def world(request):
    return request.param


@pytest.fixture(scope="module")
def sets(world):
    """(EvalSet, the scenes behind its pictures) by name."""
    return {name: scene_eval_set(world, name, 7, 32, COUNTS) for name in ("val", "heldout")}


def test_the_small_world_is_that_of_older_runs():
    """Digests of what the code gave before there were worlds."""
    records = hashlib.blake2b(digest_size=16)
    for split, seed in product(("train", "val", "heldout"), (0, 3, 2**32 - 1)):
        source = SceneSource(split, 1000, seed, 48, SMALL)
        records.update(source.identity().encode())
        for index in range(60):
            (scene, captions), record = source.spec(index), source[index]
            items = [
                (one.shape, one.colour, one.size, one.x, one.y, one.radius, one.rgb)
                for one in scene.items
            ]
            said = [repr([*items, scene.background]), record.key, *captions]
            assert record.captions == captions
            records.update("\n".join(said).encode())
            records.update(record.image.tobytes())
    assert records.hexdigest() == "0f3ebeb890281ee67324190a58bbcb94"
    kept = hashlib.blake2b(digest_size=16)
    for one in scene_eval_sets(5, 32, SMALL, COUNTS):
        foils = [(foil.image, foil.caption, foil.foil, foil.category) for foil in one.foils]
        quads = [
            (quad.image_0, quad.image_1, quad.caption_0, quad.caption_1, quad.category)
            for quad in one.quads
        ]
        kept.update(repr((one.name, one.captions, foils, quads)).encode())
        for image in one.images:
            kept.update(image.tobytes())
    assert kept.hexdigest() == "9fb82097e9b9b959cdcb633234ef566c"


def test_an_edit_of_what_a_caption_does_not_say_is_an_error():
    plain = Statement((Noun("square"),))
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no number of square"):
        scene_sets._deny(WORLDS["small"], plain, rng)
    with pytest.raises(KeyError):
        scene_sets._turn(WORLDS["small"], plain, rng)


def test_each_word_has_a_look_and_is_trained(world):
    assert set(world.shapes) <= CORNERS.keys() and set(world.fills) <= FILLS.keys()
    assert {colour for colour, _ in world.seen} == set(world.colours) <= COLOURS.keys()
    assert {shape for _, shape in world.seen} == set(world.shapes)
    assert len(world.held_out) + len(world.seen) == len(world.colours) * len(world.shapes)
    assert len(world.shapes) >= 4  # a caption names up to three, and another one is drawn
    # another colour and exchanged colours can both be held out
    assert min(len(world.held_out_colours), len(world.held_out_shapes)) >= 2
    for a, b in combinations(world.colours, 2):  # no two shades of +-14 come near each other
        apart = np.abs(np.subtract(COLOURS[a], COLOURS[b])).max()
        assert apart > 2 * 14 + 40, (a, b)


def test_the_world_is_part_of_the_identity():
    small, large = (SceneSource("val", 9, 1, 32, world) for world in (SMALL, LARGE))
    assert small.identity() == "scenes-val-1-9" and large.identity() == "scenes-val-1-9-large"


def test_training_captions_are_true_specific_and_never_held_out(world):
    source = SceneSource("train", 800, 3, 32, world)
    specs = [source.spec(i) for i in range(len(source))]
    assert frozenset().union(*(scene.pairs for scene, _ in specs)) == set(world.seen)
    lengths = set()
    for scene, captions in specs:
        assert 2 <= len(captions) <= 4 and len(set(captions)) == len(captions)
        assert all(holds(caption, scene) for caption in captions)
        lengths.update(len(caption.split()) for caption in captions)
    assert max(lengths) == (19 if world.named_fills else 16)
    words = {word for _, captions in specs for caption in captions for word in caption.split()}
    assert all(word.isalpha() and word == word.lower() for word in words)
    named = 2 * len(world.shapes) + len(world.colours) + len(world.named_fills)
    assert len(words) == 18 + named  # shapes in the singular and the plural
    # In-batch negatives are presumed false: a caption rarely holds in another scene.
    said = [parse(captions[0], world) for _, captions in specs]
    wrong = sum(holds(said[i], specs[j][0]) for i in range(200) for j in range(200) if i != j)
    assert wrong / (200 * 199) < 0.03 / len(world.pairs)
    fills = [noun.fill for statement in said for noun in statement.nouns]
    assert set(fills) == (set(world.fills) if len(world.fills) > 1 else {None})


def test_a_record_depends_on_world_split_seed_and_index_alone(world):
    source = SceneSource("train", 50, 0, 48, world)
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
        SceneSource("val", 50, 0, 48, world),
        SceneSource("heldout", 50, 0, 48, world),
        SceneSource("train", 50, 1, 48, world),
        *(SceneSource("train", 50, 0, 48, one) for one in WORLDS.values() if one != world),
    ]
    pictures = [r.image.tobytes() for r in records] + [
        other[i].image.tobytes() for other in others for i in range(30)
    ]
    assert len(set(pictures)) == len(pictures)
    assert len({record.key for record in records}) == len(records)
    with pytest.raises(IndexError):
        source[50]


@pytest.mark.parametrize("name", ["val", "heldout"])
def test_eval_set_says_the_truth(world, sets, name):
    eval_set, scenes = sets[name]
    categories = foil_categories(world)
    count = 60 + len(categories) * 40 + 2 * 40
    assert len(eval_set.images) == len(eval_set.captions) == len(scenes) == count
    for scene in scenes:
        assert bool(scene.pairs & set(world.held_out)) == (name == "heldout")
    for i, captions in enumerate(eval_set.captions):
        assert bool(captions) == (i < 60)
        assert all(
            holds(caption, scene) == (i == j)
            for caption in captions
            for j, scene in enumerate(scenes[:60])
        )
    assert Counter(foil.category for foil in eval_set.foils) == dict.fromkeys(categories, 40)
    for foil in eval_set.foils:
        assert holds(foil.caption, scenes[foil.image]) and not holds(
            foil.foil, scenes[foil.image]
        ), foil
    assert Counter(quad.category for quad in eval_set.quads) == {"binding": 20, "relation": 20}
    for quad in eval_set.quads:
        truth = [
            [holds(text, scenes[i]) for i in (quad.image_0, quad.image_1)]
            for text in (quad.caption_0, quad.caption_1)
        ]
        assert truth == [[True, False], [False, True]], quad
        assert sorted(quad.caption_0.split()) == sorted(quad.caption_1.split())


@pytest.mark.parametrize("name", ["val", "heldout"])
def test_foils_are_minimal_and_the_text_alone_does_not_tell(world, sets, name):
    changed_words = {
        "existence": 1,
        "number": 2,
        "colour": 1,
        "binding": 2,
        "size": 1,
        "relation": 1,
        "fill": 1,
    }
    assert ("fill" in foil_categories(world)) == (len(world.fills) > 1)
    for category in foil_categories(world):
        most = changed_words[category]
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


def test_held_out_edits_stay_held_out(world, sets):
    for foil in sets["heldout"][0].foils:
        novel = [
            sorted(p in world.held_out for p in parse(text, world).pairs)
            for text in (foil.caption, foil.foil)
        ]
        assert novel[0] == novel[1] and any(novel[0])
        if foil.category == "colour":  # the edit concerns the held-out noun, not its neighbour
            before, after = (parse(text, world).pairs for text in (foil.caption, foil.foil))
            assert all(
                a in world.held_out and b in world.held_out
                for a, b in zip(before, after, strict=True)
                if a != b
            )


def test_the_checker_catches_a_wrong_caption_and_a_corrupted_foil(world, sets):
    scene = SceneSpec(
        (
            Item("circle", "red", "big", 0.3, 0.5, 0.175, (214, 40, 40)),
            Item("star", "blue", "small", 0.7, 0.6, 0.11, (38, 84, 214), world.fills[-1]),
        ),
        (250, 250, 250),
        world,
    )
    truths = {
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
    }
    of_large = {
        "a big solid red circle to the left of a small hollow blue star": True,
        "a striped red circle and a hollow blue star": False,
        "one solid red circle and one striped blue star": False,
        "a hollow blue star and no striped blue star": True,
        "a red circle and no moon": True,
    }
    for caption, truth in (truths | (of_large if world == LARGE else {})).items():
        assert holds(caption, scene) is truth, caption
    eval_set, scenes = sets["val"]
    for foil in eval_set.foils[::20]:  # a "foil" that is only another wording of the truth
        spare = draw_wording(parse(foil.caption, world), np.random.default_rng(0)).text()
        assert holds(spare, scenes[foil.image])
    for text in (
        "a red dog",
        "a red circle left of a blue star",
        "two red circle and one blue star",
        "a red striped circle",
        "",
        "red",
        *(of_large if world == SMALL else ()),
    ):
        with pytest.raises(DataError, match=f"scene grammar in the {world.name} world"):
            parse(text, world)


def test_pictures_show_the_scene(world):
    source = SceneSource("heldout", 150, 5, 48, world)
    names, rgb_Cx3 = zip(*COLOURS.items(), strict=True)
    for i in range(len(source)):
        scene, image = source.spec(i)[0], source[i].image.astype(int)
        labels, places = label(scene, 48), (np.indices((144, 144)) + 0.5) / 144
        for number, item in enumerate(scene.items, 1):
            if item.fill == "solid":
                assert np.abs(image[int(item.y * 48), int(item.x * 48)] - item.rgb).max() <= 1
            reach = item.radius * 1.15
            assert reach <= min(item.x, item.y) and max(item.x, item.y) <= 1 - reach
            y, x = places[:, labels == number]
            assert max(np.abs(x - item.x).max(), np.abs(y - item.y).max()) < reach + 2 / 144
            # its strongest pixels are nearest to its colour, however thin the lines
            on = (labels == number).reshape(48, 3, 48, 3).any((1, 3))
            pixels = image[on]
            strongest = np.argsort(np.abs(pixels - scene.background).sum(1))[-6:]
            near = np.square(pixels[strongest].mean(0) - rgb_Cx3).sum(1).argmin()
            assert names[near] == item.colour, (i, item)
        for a, b in combinations(scene.items, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) > 1.05 * (a.radius + b.radius)


def test_small_shapes_are_told_apart_by_their_pixels(world):
    """The nearest of drawn patterns is that of the right shape and fill, whatever its colour."""

    def ink(scene, image):
        apart = np.linalg.norm(image.astype(float) - scene.background, axis=2)
        return np.pad(apart, 6)

    def pattern(ink_PxP, x, y):  # 13 x 13 pixels around a place
        part = ink_PxP[int(y * 48) : int(y * 48) + 13, int(x * 48) : int(x * 48) + 13]
        return (part / np.quantile(part, 0.98)).ravel()

    def drawn(shape, fill, size, x, y):
        item = Item(shape, "black", size, x, y, SIZES[size], (0, 0, 0), fill)
        scene = SceneSpec((item,), (255, 255, 255), world)
        return ink(scene, render(scene, 48))

    looks = tuple(product(world.shapes, world.fills))
    places = tuple((24 + part) / 48 for part in (1 / 6, 1 / 2, 5 / 6))
    known = [(look, x, y) for look in looks for x in places for y in places]
    known_KxP = np.stack([pattern(drawn(*look, "small", x, y), x, y) for look, x, y in known])
    for look in looks:
        big, small = (drawn(*look, size, 0.5, 0.5).sum() for size in ("big", "small"))
        assert big > 2 * small
    source, read = SceneSource("train", 300, 1, 48, world), Counter()
    for i in range(len(source)):
        scene = source.spec(i)[0]
        ink_PxP = ink(scene, source[i].image)
        for item in scene.items:
            if item.size == "small":
                found_P = pattern(ink_PxP, item.x, item.y)
                look = known[np.square(known_KxP - found_P).sum(1).argmin()][0]
                read[look == (item.shape, item.fill)] += 1
    assert read[True] > 400 and read[False] <= 0.01 * read[True], read


def test_public_sets_repeat_and_parts_can_be_left_out(world):
    first, second = (scene_eval_sets(1, 32, world, Counts(4, 2, 0)) for _ in range(2))
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
    counts = {"num_images": 2, "foils_per_category": 2, "num_quads": 2}
    where = {"seed": 0, "image_size": 32}
    where |= {name: change[name] for name in where.keys() & change}
    counts |= {name: change[name] for name in counts.keys() & change}
    with pytest.raises(ConfigError, match=next(iter(change))):
        scene_eval_sets(**where, world=SMALL, counts=Counts(**counts))


@pytest.mark.parametrize("setting", ["num_images", "num_quads"])
def test_more_than_the_grammar_offers_is_refused(monkeypatch, setting):
    monkeypatch.setattr(scene_sets, "MAX_TRIES", 30)  # the last few items take long
    shapes = SMALL.shapes[:4]
    red = World("red", shapes, ("red", "blue"), ("solid",), ("blue",), shapes)
    counts = {"num_images": 0, "foils_per_category": 0, "num_quads": 0, setting: 2000}
    with pytest.raises(ConfigError, match=setting):
        scene_eval_sets(0, 32, red, Counts(**counts))


@pytest.mark.parametrize(
    "change", [{"split": "test"}, {"size": 0}, {"seed": 2**32}, {"image_size": 0}]
)
def test_bad_sources_are_named(change):
    good = {"split": "train", "size": 1, "seed": 0, "image_size": 32, "world": LARGE}
    with pytest.raises(ConfigError, match=next(iter(change))):
        SceneSource(**good | change)


def test_balance_check_has_teeth(sets):
    foils = [foil for foil in sets["val"][0].foils if foil.category == "existence"]
    foils[0] = replace(foils[0], foil=foils[0].caption)
    assert Counter(foil.caption for foil in foils) != Counter(foil.foil for foil in foils)

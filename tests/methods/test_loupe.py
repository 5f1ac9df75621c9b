"""LOUPE: what is sampled takes the place of what is predicted, who is trained by what, padding,
regions; and that words find the shapes that they name.
"""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole

from nas_jax import runner
from nas_jax.config import from_config_dict, to_dict
from nas_jax.data.config import DataConfig
from nas_jax.data.phrases import NounPhrases
from nas_jax.data.scene_captions import parse
from nas_jax.data.scene_truth import item_of_patches
from nas_jax.inspect.validation import validation_pairs
from nas_jax.losses.infonce import infonce
from nas_jax.losses.shapley import (
    alignment_labels,
    draw_coalitions,
    pair_interactions,
    standardised,
)
from nas_jax.methods.draws import Draws
from nas_jax.methods.loupe import Game, LoupeConfig
from nas_jax.models.interactions import LEVELS, LoupeNetwork
from nas_jax.models.regions import cluster_patches, region_features
from nas_jax.models.towers import unit
from nas_jax.parallel.mesh import make_mesh
from nas_jax.train.trained import open_trained
from nas_jax.utils.errors import ConfigError

CONFIG = LoupeConfig(samples=3, token_pairs=10, phrase_pairs=4, regions=3, phrases=2, hidden=8)
GROUPS = "token_interactions", "phrase_interactions"


@pytest.fixture(scope="module")
def found():
    """Loss, metrics and gradients with and without the two alignments."""
    plain = replace(CONFIG, token_weight=0.0, phrase_weight=0.0)
    return whole.gradients(tiny.built(CONFIG)), whole.gradients(tiny.built(plain))


def a_game(method, seed=0):
    """Six games of 4 firsts and 3 seconds, of which the last exists in one of two."""
    rng = np.random.default_rng(seed)
    x, y = (unit(jnp.asarray(rng.normal(size=(6, n, 8)), jnp.float32)) for n in (4, 3))
    y_real = jnp.ones((6, 3), bool).at[::2, 2].set(False)
    drawn = method.draw_game(Draws(jax.random.key(seed)), "tokens", 6, 4, 3)
    return Game(x, y, jnp.ones((6, 4), bool), y_real, *drawn)


def sampled(game, pair_BxM):
    """What the pairs are worth, in deviations; and whether they play."""
    cosines = jnp.einsum("bne,ble->bnl", game.x_BxNxE, game.y_BxLxE)
    worth = pair_interactions(cosines, game.plays_BxNxL, game.coalition_BxAxP, pair_BxM)
    valid = jnp.take_along_axis(game.plays_BxNxL.reshape(6, -1), pair_BxM, axis=1)
    return np.asarray(standardised(worth, valid)), np.asarray(valid)


def test_where_it_is_infinitely_uncertain_labels_are_the_sampled_ones(monkeypatch):
    method = tiny.built(replace(CONFIG, explored=0.0, token_pairs=12))
    game, rng = a_game(method), np.random.default_rng(1)
    predicted = jnp.asarray(rng.normal(size=(6, 4, 3)), jnp.float32)
    variance = jnp.full((6, 4, 3), jnp.inf)
    monkeypatch.setattr(LoupeNetwork, "interactions", lambda *_: (predicted, variance))
    params = {}  # of nobody
    values, plays = sampled(game, jnp.broadcast_to(jnp.arange(12), (6, 12)))
    plays = jnp.asarray(plays.reshape(6, 4, 3))

    interactions, _ = method.interactions(params, "tokens", game)
    expected = alignment_labels(jnp.asarray(values.reshape(6, 4, 3)), plays, 0.5)
    labels = alignment_labels(interactions, plays, 0.5)
    np.testing.assert_allclose(labels, expected, atol=1e-6)
    assert np.abs(labels - alignment_labels(predicted, plays, 0.5)).max() > 0.1

    # a budget of five: those that are uncertain are sampled, the others stay as predicted
    method = tiny.built(replace(CONFIG, explored=0.0, token_pairs=5))
    unsure = np.zeros((6, 12), bool)
    unsure[:, [0, 3, 4, 7, 9]] = True
    variance = jnp.asarray(np.where(unsure, np.inf, -6.0).reshape(6, 4, 3))
    interactions, _ = method.interactions(params, "tokens", game)
    changed = np.asarray(interactions != predicted).reshape(6, 12)
    np.testing.assert_array_equal(changed, unsure)
    values, _ = sampled(game, jnp.broadcast_to(jnp.asarray([0, 3, 4, 7, 9]), (6, 5)))
    kept = np.asarray(interactions).reshape(6, 12)[:, [0, 3, 4, 7, 9]]
    np.testing.assert_allclose(kept, values, atol=1e-5)


def test_the_loss_has_its_parts_and_every_group_is_trained(found):
    (loss, _, metrics, grads), (plain, _, _, plain_grads) = found
    parts = [metrics[f"{name}/{level}"] for name in ("loss", "interactions") for level in LEVELS]
    np.testing.assert_allclose(loss, metrics["loss/contrast"] + sum(parts), rtol=1e-5)
    assert loss != plain
    whole.check_every_group_is_trained(grads)
    whole.check_every_group_is_trained(plain_grads)


def test_labels_carry_no_gradient_and_what_predicts_them_sends_none_to_the_towers(found):
    (_, _, _, grads), (_, _, _, plain) = found
    for group in (*GROUPS, "logit_scale"):  # the same with and without the alignments
        for one, other in zip(*map(jax.tree.leaves, (grads[group], plain[group])), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    method = tiny.built(CONFIG)
    params, _ = jax.jit(method.init)(jax.random.key(0))
    batch, draw = whole.batch(method), Draws(jax.random.key(9))

    @jax.jit
    def contrast(params):
        net = method.apply(params)
        texts = batch["token_ids_BxL"], batch["token_mask_BxL"], draw.seeds("text/0", 6)
        text = net.encode_text(*texts)[1]
        return infonce(
            net.encode_image(batch["image_BxHxWx3"])[1], text, method.temperature(params)
        )

    expected = jax.grad(contrast)(params)
    towers = [name for name in params if name not in GROUPS]
    for name in towers:
        for one, other in zip(*map(jax.tree.leaves, (plain[name], expected[name])), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    both = (jax.tree.leaves(one["image_encoder"]) for one in (grads, plain))
    moved = [np.abs(one - other).max() for one, other in zip(*both, strict=True)]
    assert max(moved) > 1e-3


def test_padding_changes_nothing():
    method = tiny.built(CONFIG)
    params, state = jax.jit(method.init)(jax.random.key(0))
    batch = whole.batch(method)
    longer = {
        name: jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, 3),)) if name.endswith("L") else x
        for name, x in batch.items()
    }
    assert longer["phrase_ids_BxCxL"].shape == (6, 2, batch["phrase_ids_BxCxL"].shape[2] + 3)
    draw = Draws(jax.random.key(9))
    loss = jax.jit(lambda batch: method.loss(params, state, batch, draw, jnp.int32(0), None))
    (one, (_, metrics)), (other, (_, padded)) = loss(batch), loss(longer)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(padded[name], value, rtol=1e-4, atol=1e-5)
    assert method.wants == (NounPhrases(2),)


def test_regions_are_clusters_of_patches_and_their_features_means():
    rng = np.random.default_rng(0)
    centres, truth = np.eye(5)[:3], rng.permutation(np.arange(12) % 3)
    patches = centres[truth] + 0.05 * rng.normal(size=(12, 5))
    patches = jnp.asarray(patches[None], jnp.float32)
    found = np.asarray(cluster_patches(unit(patches), 3, 4))[0]
    together = found[:, None] == found
    np.testing.assert_array_equal(together, truth[:, None] == truth)
    features, real = region_features(patches, 3, 4)
    assert real.all()
    for region in range(3):
        mean = np.asarray(patches[0])[found == region].mean(0)
        np.testing.assert_allclose(features[0, region], mean / np.linalg.norm(mean), atol=1e-5)
    alike = jnp.broadcast_to(patches[:, :1], patches.shape)  # a picture of one patch over and over
    features, real = region_features(alike, 3, 4)
    assert real.sum() == 1 and np.isfinite(features).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": 0}, "samples=0; expected at least 1"),
        ({"explored": 1.5}, "explored=1.5"),
        ({"label_temp": 0.0}, "label_temp=0.0"),
        ({"temp_init": 0.005}, "temp_init=0.005"),
    ],
)
def test_what_is_out_of_range_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        tiny.built(replace(CONFIG, **change))


@pytest.mark.slow
def test_it_works_in_pieces_and_in_bfloat16():
    whole.check_pieces(CONFIG)


@pytest.mark.slow
def test_eight_devices_give_the_same_numbers():
    whole.check_devices("loupe")


@pytest.mark.slow
def test_it_trains_resumes_and_is_scored(tmp_path):
    whole.check_run(CONFIG, tmp_path, ("itc",))


@pytest.mark.slow
def test_words_find_the_shapes_that_they_name(tmp_path):
    path = Path(__file__).parents[2] / "configs/loupe.py"
    run = from_config_dict(runpy.run_path(str(path))["get_config"]("size=scenes"))
    silent = replace(run.eval, foils=False, quads=False)
    run = replace(run, train=replace(run.train, steps=200), eval=silent)
    assert runner.main(to_dict(run), str(tmp_path), "train") == 0
    shares = words_on_shapes(tmp_path)
    # without the alignments both are twice the share of patches
    assert shares["cosines"] > 2.3 * shares["patches"]
    assert shares["labels"] > 2.7 * shares["patches"]


def named_shapes(caption, scene):
    """(place of a colour or shape word in the caption, shapes of the scene it speaks of)."""
    words, place = caption.split(), 0
    for noun in parse(caption, scene.world).nouns:
        while not words[place].startswith(noun.shape):
            place += 1
        shown = [index for index, item in enumerate(scene.items) if noun.fits(item)]
        if shown and noun.number != 0:
            yield place, shown
            if noun.colour:
                yield place - 1, shown
        place += 1


def words_on_shapes(workdir, count=64) -> dict[str, float]:
    """Of words for a colour or a shape that the picture shows: the mean share of patches that these
    shapes cover, and of what each word gives to patches, by softmaxes of cosines, of interactions
    of 64 coalitions, and of those that are predicted, the mean part that lies there. Also how well
    the predicted ones correlate with those of 64 coalitions, and these with others of 8.
    """
    trained = open_trained(workdir)
    method, data = trained.method, trained.section(DataConfig, "data")
    params, _ = trained.load(make_mesh(devices=jax.devices()[:1]), lambda _: None)
    pairs = validation_pairs(data, trained.config["seed"], count)
    ids, mask = trained.tokenizer.encode(pairs.captions, data.text_length)
    plays = mask[:, None] & (np.arange(len(mask[0])) > 0) & np.ones((count, 36, 1), bool)

    @jax.jit
    def read(params, images, ids, mask, plays):
        net, temp = method.apply(params), 0.05  # the same for all runs, whatever each has learned
        x = unit(net.encode_image(images)[0][:, 1:])
        y = unit(net.encode_text(ids, mask)[0])
        cosines = jnp.einsum("bne,ble->bnl", x, y)
        predicted = net.interactions("tokens", x, y, plays)[0]
        size = plays[0].size

        def sampled(key, samples):
            coalition = draw_coalitions(key, count, samples, sum(plays.shape[1:]))
            every = jnp.broadcast_to(jnp.arange(size), (count, size))
            worth = pair_interactions(cosines, plays, coalition, every)
            return standardised(worth, plays.reshape(count, size)).reshape(plays.shape)

        many, few = sampled(jax.random.key(0), 64), sampled(jax.random.key(1), 8)
        labels = (alignment_labels(x, plays, 0.5)[1] for x in (many, predicted))
        cosine = alignment_labels(cosines, plays, temp)[1]
        return (cosine, *labels), (predicted, many, few)

    maps, interactions = jax.device_get(read(params, np.stack(pairs.images), ids, mask, plays))
    patches, found = [], [[] for _ in maps]
    for row, (caption, scene) in enumerate(zip(pairs.captions, pairs.scenes, strict=True)):
        if mask[row].sum() != 1 + len(caption.split()):
            continue
        items = item_of_patches(scene, data.image_size, trained.model.patch_size)
        for place, shown in named_shapes(caption, scene):
            there = np.isin(items, shown)
            patches.append(there.mean())
            for one, map_BxNxL in zip(found, maps, strict=True):
                one.append(map_BxNxL[row, there, 1 + place].sum())
    predicted, many, few = (x[plays] for x in interactions)
    shares = dict(zip(("cosines", "labels", "predicted"), map(np.mean, found), strict=True))
    agree = {
        "predicted with 64": np.corrcoef(predicted, many)[0, 1],
        "8 with 64": np.corrcoef(few, many)[0, 1],
    }
    return {"patches": np.mean(patches), "words": len(patches), **shares, **agree}

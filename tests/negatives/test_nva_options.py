"""NVA's options: which patch is the object, which code comes in, in what form, and when."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.kernels.image_tokens import ImageTokens, QueryGroup
from nas_jax.methods import method_config
from nas_jax.methods.draws import Draws
from nas_jax.methods.nva_images import find_object, match_gradient, rows_on, spread, word_attention
from nas_jax.models.codebook import squared_distances
from nas_jax.negatives.nva import NvaConfig, draw_objects, least_like, neighbour_codes
from nas_jax.utils.errors import ConfigError

MODEL = tiny.model(dropout=0.0, fusion_layers=2, init_std=0.3)


def noisy(params):
    """What starts at zero would hide differences."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def made(pieces=1, **options):
    method = tiny.method("vd_nva", nva=NvaConfig(**options), model=MODEL, pieces=pieces)
    params, state = method.init(jax.random.key(0))
    params, batch, draw = noisy(params), tiny.batch(), Draws(jax.random.key(2))
    encoded = method.encode(params, batch, {}, draw, "student")
    words, _ = method.look_up(
        params, state["dictionary"], encoded.image_tokens_BxTxD, key=jax.random.key(0)
    )
    inputs = params, encoded, words, batch
    return method, inputs, method.negative_images(*inputs, draw)


def in_parts(method, params, words, negative):
    """The same tokens, put together from the parts that the fusion encoder reads."""
    positions = method.apply(params).neck.position_terms()
    group = QueryGroup(replacement=negative.replacement)
    return ImageTokens((words.tokens_BxTxD,), (group,), positions).seen_by(group)


def test_a_patch_that_is_replaced_whole_keeps_nothing_of_the_old_one():
    found = {}
    for form in ("code", "gated", "whole"):
        method, (params, _, words, _), negative = made(replace=form)
        found[form] = negative
        if form != "gated":  # there each patch gets a token of its own
            parts = in_parts(method, params, words, negative)
            np.testing.assert_allclose(parts, negative.tokens_BxTxD, rtol=1e-5, atol=1e-5)
    assert found["gated"].replacement is None
    replaced = np.asarray(negative.replaced_BxN)
    neck = method.apply(params).neck
    code_BxNxD = jnp.broadcast_to(
        words.state.codes_KxD[negative.code_B][:, None], words.features_BxNxD.shape
    )
    whole = np.asarray(neck.finish(neck.mix(code_BxNxD, code_BxNxD)))
    after = {form: np.asarray(one.tokens_BxTxD)[:, 1:] for form, one in found.items()}
    np.testing.assert_allclose(after["whole"][replaced], whole[replaced], rtol=1e-5, atol=1e-5)
    for other in ("code", "gated"):
        np.testing.assert_array_equal(after["whole"][~replaced], after[other][~replaced])
        assert np.abs(after["whole"] - after[other])[replaced].max() > 1e-2


def test_the_norm_finds_the_longest_token():
    _, (_, encoded, _, _), negative = made(similarity="norm", object_candidates=1)
    norms = np.linalg.norm(np.asarray(encoded.image_tokens_BxTxD)[:, 1:], axis=-1)
    np.testing.assert_array_equal(negative.object_patch_B, norms.argmax(-1))


def fusion_inputs(method, inputs):
    params, encoded, words, batch = inputs
    return (
        method,
        params,
        {
            "tokens_BxTxD": words.tokens_BxTxD,
            "text_BxLxD": encoded.text_tokens_BxLxD,
            "mask_BxL": batch["token_mask_BxL"],
            "ids_BxL": batch["token_ids_BxL"],
        },
    )


def test_the_gradient_tells_what_a_little_more_of_a_token_does_to_the_match():
    method, inputs, negative = made(similarity="gradient", object_candidates=1)
    method, params, rows = fusion_inputs(method, inputs)
    found = np.asarray(match_gradient(method, params, rows))
    texts = rows["text_BxLxD"][:, None], rows["mask_BxL"][:, None]

    @jax.jit
    def logit(patch, factor):
        tokens = rows["tokens_BxTxD"].at[:, patch].multiply(factor)
        return method.score(params, tokens, *texts)["itm"][:, 0]

    step = 3e-2
    slopes = np.stack(
        [
            (logit(patch, 1 + step) - logit(patch, 1 - step)) / (2 * step)
            for patch in range(found.shape[1])
        ],
        axis=1,
    )
    np.testing.assert_allclose(found, np.maximum(slopes, 0), atol=2e-2 * np.abs(slopes).max())
    np.testing.assert_array_equal(negative.object_patch_B, found[:, 1:].argmax(-1))


def test_attention_is_that_of_the_content_words():
    method, inputs, negative = made(similarity="attention", object_candidates=1)
    method, params, rows = fusion_inputs(method, inputs)
    ids = np.full(rows["ids_BxL"].shape, 5)  # function words
    ids[:, 2] = 9
    only = rows | {"ids_BxL": jnp.asarray(ids)}
    found = np.asarray(word_attention(method, params, only))
    text, mask, tokens = (rows[name] for name in ("text_BxLxD", "mask_BxL", "tokens_BxTxD"))
    offset = jnp.zeros((len(ids), MODEL.heads, ids.shape[1], tokens.shape[1]))
    encoder = method.apply(params).fusion_encoder
    _, probabilities = encoder.with_map(text, mask, tokens, 0, offset)
    np.testing.assert_allclose(found, np.asarray(probabilities).mean(1)[:, 2], rtol=1e-5)
    every = np.asarray(word_attention(method, params, rows))
    np.testing.assert_allclose(every.sum(-1), 1, rtol=1e-5)
    assert np.abs(every - found).max() > 1e-2
    np.testing.assert_array_equal(negative.object_patch_B, every[:, 1:].argmax(-1))


@pytest.mark.parametrize("similarity", ["gradient", "attention"])
def test_a_pass_that_looks_for_the_object_trains_nothing_and_goes_in_pieces(similarity):
    method, (params, encoded, words, batch), negative = made(similarity=similarity)

    def total(params, encoded, words):
        return (find_object(method, params, encoded, words, batch) ** 3).sum()

    floats = words._replace(code_ids_BxN=None, state=None)
    grads = jax.grad(total, (0, 1, 2))(params, encoded, floats)
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))
    _, _, again = made(pieces=2, similarity=similarity)
    np.testing.assert_allclose(again.similarity_BxN, negative.similarity_BxN, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(negative.similarity_BxN, axis=-1), 1, rtol=1e-5)


def test_candidates_by_rank_and_by_distance_are_drawn_uniformly():
    distances, every = jnp.array([[0.1, 25.0, 1.0, 4.0, 9.0, 16.0]]), jnp.ones((1, 6), bool)
    codes, log_weights = neighbour_codes(distances, every, 2, first=2)
    np.testing.assert_array_equal(codes, [[4, 5]])
    np.testing.assert_array_equal(log_weights, [[0, 0]])
    usable = jnp.array([[1, 1, 0, 1, 1, 1]], bool)  # ranks count usable codes
    np.testing.assert_array_equal(neighbour_codes(distances, usable, 2, first=2)[0], [[5, 1]])
    codes, log_weights = neighbour_codes(distances, every, 4, beyond=jnp.float32(2.5))
    np.testing.assert_array_equal(codes[:, :3], [[4, 5, 1]])
    np.testing.assert_array_equal(log_weights, [[0, 0, 0, -np.inf]])


@pytest.mark.parametrize(
    "options", [dict(neighbour_from=3, neighbours=2), dict(neighbour_distance=1.2, neighbours=4)]
)
def test_the_new_code_is_of_the_wanted_rank_or_distance(options):
    method, (_, _, words, _), negative = made(**options)
    rows, codes = np.arange(6), words.state.codes_KxD
    object_BxD = words.features_BxNxD[rows, negative.object_patch_B]
    distances = np.array(squared_distances(object_BxD, codes))
    distances[rows, np.asarray(words.code_ids_BxN)[rows, negative.object_patch_B]] = np.inf
    distances[rows, distances.argmin(-1)] = np.where(
        distances.argmin(-1) == squared_distances(object_BxD, codes).argmin(-1),
        np.inf,
        distances.min(-1),
    )
    new = np.asarray(negative.code_B)
    rank = (distances < distances[rows, new][:, None]).sum(-1)
    if "neighbour_from" in options:
        assert negative.valid_B.all() and set(rank) <= {3, 4}
    else:
        valid = np.asarray(negative.valid_B)
        beyond = 1.2 * float(spread(words))
        assert valid.any() and (np.sqrt(distances[rows, new])[valid] > beyond).all()
        assert not np.asarray(negative.replaced_BxN)[~valid].any()


def test_of_a_pool_of_near_codes_those_least_like_the_caption_come_in():
    method, (_, encoded, words, _), negative = made(neighbour_pool=6, neighbours=2)
    rows, codes = np.arange(6), np.asarray(words.state.codes_KxD)
    caption = np.asarray(encoded.text_tokens_BxLxD)[:, 0]
    distances = np.array(
        squared_distances(words.features_BxNxD[rows, negative.object_patch_B], codes)
    )
    own = np.asarray(words.code_ids_BxN)[rows, negative.object_patch_B]
    for row in rows:
        nearest = distances[row].argmin()
        pool = [code for code in distances[row].argsort() if code not in (nearest, own[row])][:6]
        likeness = codes[pool] @ caption[row] / np.linalg.norm(codes[pool], axis=-1)
        assert negative.code_B[row] in np.array(pool)[likeness.argsort()[:2]]
    caption, codes = jnp.array([[1.0, 0.0]]), jnp.array([[[1.0, 0], [0, 1], [9, 1], [-1, 0]]])
    usable = jnp.array([[0.0, -jnp.inf, 0.0, 0.0]])
    place, log_weights = least_like(caption, codes, usable, 4)
    np.testing.assert_array_equal(place[0, :3], [3, 2, 0])
    np.testing.assert_array_equal(log_weights, [[0, 0, 0, -np.inf]])


def test_an_object_is_all_patches_with_its_code_or_one_of_the_nearest_to_it():
    options = dict(object_candidates=1, neighbour_from=3, neighbours=2, replace="whole")
    _, (_, _, words, _), negative = made(object_codes=4, **options)
    _, _, narrow = made(**options)
    ids, rows = np.asarray(words.code_ids_BxN), np.arange(6)
    patch = np.asarray(negative.object_patch_B)
    features_BxD = words.features_BxNxD[rows, patch]
    distances = np.array(squared_distances(features_BxD, words.state.codes_KxD))
    distances[rows, ids[rows, patch]] = -1  # its own first
    nearest = distances.argsort(-1)[:, :4]
    replaced = np.asarray(negative.replaced_BxN)
    np.testing.assert_array_equal(replaced, (ids[..., None] == nearest[:, None]).any(-1))
    assert (np.asarray(negative.code_B)[:, None] != nearest).all()
    assert replaced.sum() > np.asarray(narrow.replaced_BxN).sum()  # else nothing was tested


def test_several_objects_are_drawn_without_replacement_and_each_gets_its_own_code():
    method, inputs, negative = made(objects=3, object_candidates=6, replace="whole")
    params, _, words, _ = inputs
    objects, ids = np.asarray(negative.objects_BxU), np.asarray(words.code_ids_BxN)
    assert all(len(set(row)) == 3 for row in objects)
    top = np.argsort(-np.asarray(negative.similarity_BxN), axis=-1)[:, :6]
    assert all(set(row) <= set(best) for row, best in zip(objects, top, strict=True))
    old = np.take_along_axis(ids, objects, axis=1)
    replaced = np.asarray(negative.replaced_BxN)
    np.testing.assert_array_equal(replaced, (ids[:, None] == old[..., None]).any(1))
    assert (old != np.asarray(negative.codes_BxU)).all() and negative.replacement is None
    before, after = np.asarray(words.tokens_BxTxD), np.asarray(negative.tokens_BxTxD)
    np.testing.assert_array_equal(before[:, 1:][~replaced], after[:, 1:][~replaced])
    # a patch's new token is that of the first object with its code
    first = (ids[:, None] == old[..., None]).argmax(1)
    code_BxNxD = words.state.codes_KxD[np.take_along_axis(np.asarray(negative.codes_BxU), first, 1)]
    neck = method.apply(params).neck
    whole = np.asarray(neck.finish(neck.mix(code_BxNxD, code_BxNxD)))
    np.testing.assert_allclose(after[:, 1:][replaced], whole[replaced], rtol=1e-5, atol=1e-5)
    assert len(set(first[replaced])) > 1
    key, similarity = jax.random.key(4), negative.similarity_BxN
    best, patch = jax.lax.top_k(similarity, 6)
    choice = jax.random.categorical(key, best)
    expected = jnp.take_along_axis(patch, choice[:, None], axis=1)
    np.testing.assert_array_equal(draw_objects(key, similarity, 6), expected)


def test_the_share_of_negatives_rises_with_the_epochs():
    config, valid = NvaConfig(start_epoch=2.0, ramp_epochs=4.0), jnp.ones(4000, bool)
    shares = [
        float(rows_on(config, epoch, valid, Draws(jax.random.key(0))).mean())
        for epoch in (2.0, 3.0, 5.0, 6.0, 9.0)
    ]
    np.testing.assert_allclose(shares, [0, 0.25, 0.75, 1, 1], atol=0.03)
    assert shares[0] == 0 and shares[3] == 1
    assert not rows_on(config, 9.0, ~valid, Draws(jax.random.key(0))).any()

    method = tiny.method("nas", nva=NvaConfig(ramp_epochs=2.0))  # 10 steps an epoch
    params, state = method.init(jax.random.key(0))
    loss = jax.jit(method.loss, static_argnums=5)
    for step, share in ((0, 0), (20, 1)):
        inputs = params, state, tiny.batch(), Draws(jax.random.key(9)), jnp.int32(step)
        value, (_, metrics) = loss(*inputs, method.stage(step))
        assert metrics["nva/valid_share"] == share and np.isfinite(value)


def test_older_configs_name_the_form_of_the_replaced_patch_otherwise():
    for gated, form in ((False, "code"), (True, "gated")):
        config = method_config({"name": "nas", "nva": {"gate_replaced": gated, "neighbours": 5}})
        assert config.nva == NvaConfig(replace=form, neighbours=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(similarity="size"), "similarity='size'"),
        (dict(replace="half"), "replace='half'"),
        (dict(objects=4), "objects=4, object_candidates=3"),
        (dict(neighbour_from=9, neighbours=3), "neighbour_from . nva.neighbours=12 of 12 codes"),
        (dict(neighbour_pool=2), "neighbour_pool=2, neighbours=3"),
        (dict(neighbour_pool=12), "neighbour_from . nva.neighbour_pool=12 of 12 codes"),
        (dict(ramp_epochs=-1.0), "ramp_epochs=-1"),
        (dict(object_codes=2), "object_codes=2, neighbour_from=0"),
        (dict(object_codes=0), "object_codes=0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny.method("vd_nva", nva=NvaConfig(**options))

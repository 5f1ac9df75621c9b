"""What every negative must be, and must not be."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.losses.itc import init_queue
from nas_jax.methods.draws import Draws
from nas_jax.methods.nas import Fgitm
from nas_jax.methods.refill import refilled_texts
from nas_jax.methods.terms import Seen
from nas_jax.negatives.in_batch import allowed_negatives, draw_negative
from nas_jax.negatives.nta import candidates, choose_words, refill
from nas_jax.negatives.nva import NvaConfig, neighbour_codes


def test_hard_negatives_follow_the_softmax_and_never_share_the_id():
    ids = jnp.array([0, 1, 1, 2])
    logits = jnp.array([[9.0, 0.0, 1.0, 2.0]] * 4)
    keys = jax.random.split(jax.random.key(0), 4000)
    allowed = allowed_negatives(ids)
    drawn = np.asarray(jax.vmap(lambda key: draw_negative(key, logits, allowed))(keys))
    assert allowed.any(-1).all()
    assert not (np.asarray(ids)[drawn] == np.asarray(ids)[None]).any()
    share = np.bincount(drawn[:, 0], minlength=4) / len(drawn)
    expected = np.exp([-np.inf, 0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    np.testing.assert_allclose(share, expected, atol=0.03)
    assert not allowed_negatives(jnp.array([5])).any()  # a batch of one has no negative


def make_nva(method, seed=0):
    params, state = method.init(jax.random.key(seed))
    batch, draw = tiny.batch(), Draws(jax.random.key(seed + 1))
    encoded = method.encode(params, batch, {}, draw, "student")
    words, _ = method.look_up(
        params, state["dictionary"], encoded.image_tokens_BxTxD, key=jax.random.key(seed)
    )
    return params, words, method.negative_images(params, encoded, words, batch, draw)


def test_nva_replaces_the_patches_of_the_object_and_nothing_else():
    _, words, negative = make_nva(tiny.method("vd_nva"))
    replaced, object_patch = np.asarray(negative.replaced_BxN), np.asarray(negative.object_patch_B)
    rows = np.arange(len(object_patch))
    assert negative.valid_B.all()
    assert replaced[rows, object_patch].all() and replaced.any(-1).all()
    codes = np.asarray(words.code_ids_BxN)
    np.testing.assert_array_equal(replaced, codes == codes[rows, object_patch][:, None])
    assert (np.asarray(negative.code_B) != codes[rows, object_patch]).all()
    before, after = np.asarray(words.tokens_BxTxD), np.asarray(negative.tokens_BxTxD)
    np.testing.assert_array_equal(before[:, 0], after[:, 0])
    np.testing.assert_array_equal(before[:, 1:][~replaced], after[:, 1:][~replaced])
    assert (np.abs(before - after)[:, 1:][replaced].max(-1) > 1e-3).all()
    top = np.argsort(-np.asarray(negative.similarity_BxN), axis=-1)[:, :3]
    assert all(patch in row for patch, row in zip(object_patch, top, strict=True))


def test_neighbours_are_the_nearest_living_codes_without_the_own_one():
    distances = jnp.array([[1.0, 5.0, 2.0, 3.0, 4.0]])
    codes, log_weights = neighbour_codes(distances, jnp.ones((1, 5), bool), 3)
    np.testing.assert_array_equal(codes, [[2, 3, 4]])
    scaled = np.array([2.0, 3.0, 4.0]) / np.linalg.norm([2.0, 3.0, 4.0])
    weights = np.exp(1 / (scaled + 1e-4))
    np.testing.assert_allclose(np.exp(log_weights[0]), weights / weights.sum(), rtol=1e-5)
    codes, log_weights = neighbour_codes(distances, jnp.array([[1, 0, 0, 1, 0]], bool), 3)
    assert int(codes[0, 0]) == 3 and np.isneginf(np.asarray(log_weights)[0, 1:]).all()
    _, log_weights = neighbour_codes(distances, jnp.array([[1, 0, 0, 0, 0]], bool), 3)
    # nothing to replace with: the row is masked out of the loss
    assert np.isneginf(np.asarray(log_weights)).all()


@pytest.mark.parametrize(
    "form", [{}, dict(replace="whole", similarity="gradient", objects=2, neighbour_from=1)]
)
def test_nva_rows_train_only_fusion_and_head_unless_asked_otherwise(form):
    def gradients(stop):
        method = tiny.method(
            "vd_nva", nva=NvaConfig(stop_gradient=stop, **form), model=tiny.model(dropout=0.0)
        )
        params, words, _ = make_nva(method)
        batch, draw, dictionary = tiny.batch(), Draws(jax.random.key(1)), words.state

        def loss(params):
            encoded = method.encode(params, batch, {}, draw, "student")
            words, _ = method.look_up(params, dictionary, encoded.image_tokens_BxTxD)
            stage = method.stage(0)
            state = {"queue": init_queue(jax.random.key(0), 0, 8)}
            both = encoded, encoded
            seen = Seen(params, params, state, batch, draw, 0.0, stage, *both, extra=words)
            seen = seen._replace(itc=method.contrast(seen))
            rows = {"itm": {"nva": Fgitm(method).rows(seen)["nva"]}}
            fused = method.fuse(params, words.tokens_BxTxD, rows, draw)["nva"]
            return method.match_logits(params, fused[:, 0])[:, 0].sum()

        grads = jax.grad(loss)(params)
        return {
            name: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads[name]))
            for name in grads
        }

    stopped, flowing = gradients(True), gradients(False)
    assert stopped["fusion_encoder"] > 0 and stopped["itm_head"] > 0
    assert all(stopped[name] == 0 for name in ("image_encoder", "text_encoder", "neck"))
    assert all(flowing[name] > 0 for name in ("image_encoder", "text_encoder", "neck"))


def test_nta_replaces_content_words_by_other_content_words():
    vocabulary, mask_id = tiny.VOCABULARY, tiny.VOCABULARY.mask
    batch = tiny.batch(64)
    ids, mask = np.asarray(batch["token_ids_BxL"]).copy(), np.asarray(batch["token_mask_BxL"])
    ids[0] = np.where(mask[0], 5, 0)  # a caption of function words only
    ids[1, 1:4] = (9, 20, 21)  # a word of three pieces: not to be touched
    masked = choose_words(jax.random.key(0), jnp.asarray(ids), jnp.asarray(mask), vocabulary, 0.3)
    chosen = np.asarray(masked.token_ids_BxL) == mask_id
    assert (
        (vocabulary.content_V[ids] & mask)[chosen].all()
        and not chosen[0].any()
        and not chosen[1, 1:4].any()
    )
    words = (mask[:, 1:] & ~vocabulary.continuation_V[ids[:, 1:]]).sum(-1)
    available = (vocabulary.content_V[ids] & mask).sum(-1)
    wanted = np.minimum(np.maximum(1, np.round(0.3 * words)), available)
    np.testing.assert_array_equal(chosen[2:].sum(-1), wanted[2:])

    logits = (
        jnp.zeros((*masked.positions_BxM.shape, tiny.VOCAB)).at[..., 6].set(50.0)
    )  # a function word is the favourite
    original = jnp.take_along_axis(jnp.asarray(ids), masked.positions_BxM, axis=1)
    logits = logits + 40.0 * jax.nn.one_hot(original, tiny.VOCAB)  # and the original word next
    best = candidates(jnp.asarray(ids), masked, logits, vocabulary, 10)
    new, valid = refill(jax.random.key(1), jnp.asarray(ids), masked, *best)
    new = np.asarray(new)
    assert not bool(valid[0]) and valid[2:].all()
    np.testing.assert_array_equal(new[~chosen], ids[~chosen])
    assert (new[chosen] != ids[chosen]).all() and vocabulary.fillable_V[new[chosen]].all()
    only = vocabulary._replace(fillable_V=np.arange(tiny.VOCAB) == 9)
    nines = jnp.full((1, 8), 9).at[0, 0].set(2)
    masked = choose_words(jax.random.key(0), nines, jnp.ones((1, 8), bool), vocabulary, 0.15)
    best = candidates(nines, masked, jnp.zeros((1, 1, tiny.VOCAB)), only, 10)
    same, valid = refill(jax.random.key(1), nines, masked, *best)
    # no other word to put in: nothing changed
    assert not valid.any() and (np.asarray(same)[0, 1:] == 9).all()


def test_nta_never_sees_the_picture():
    method = tiny.method("nas")
    params, state = method.init(jax.random.key(0))
    batch, draw = tiny.batch(), Draws(jax.random.key(1))

    def texts(batch):
        seen = Seen(params, state["teacher"], state, batch, draw, 0.0, None, None, None)
        return refilled_texts(method, method.config.nta, seen).ids_BxCxL[:, 0]

    other = batch | {"image_BxHxWx3": 255 - batch["image_BxHxWx3"]}
    np.testing.assert_array_equal(texts(batch), texts(other))
    assert (texts(batch) != batch["token_ids_BxL"]).any(-1).all()

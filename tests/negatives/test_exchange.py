"""NTA's exchange: two words change places where the language model finds both plausible."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from nas_jax.methods.draws import Draws
from nas_jax.methods.refill import exchanged_share, exchanged_texts, negative_texts
from nas_jax.methods.terms import Seen
from nas_jax.negatives.nta import NtaConfig, choose_pairs, exchange, plausible_pairs

V = tiny.VOCABULARY


def captions(size=64):
    batch = tiny.batch(size)
    ids, mask = np.array(batch["token_ids_BxL"]), np.array(batch["token_mask_BxL"])
    ids[0] = np.where(mask[0], 5, 0)  # function words only
    ids[1] = np.where(mask[1], 9, 0)  # one word again and again
    mask[2], ids[2] = True, (2, 9, 20, 5, 10, 21, 6, 11)  # words of several pieces, and one other
    return jnp.asarray(ids), jnp.asarray(mask)


def exchanged(logits_of, share=0.1, pairs=6, seed=0):
    ids, mask = captions()
    chosen = choose_pairs(jax.random.key(seed), ids, mask, V, pairs)
    positions = chosen.positions_BxPx2
    words = jnp.take_along_axis(ids[:, None], positions, axis=-1)
    plausible = plausible_pairs(ids, chosen, logits_of(words), V, share)
    new, valid = exchange(jax.random.key(seed + 1), ids, chosen, plausible)
    return tuple(np.asarray(x) for x in (ids, mask, new, valid)), chosen


def flat(words):
    return jnp.zeros((*words.shape, V.size))


def same_half(words):
    """At each place the half of the content words is likely that its own word is of."""
    likely = (jnp.arange(V.size) < 14) == (words[..., None] < 14)
    return jnp.where(likely, 0.0, -9.0)


def test_two_content_words_change_places_and_nothing_else():
    (ids, mask, new, valid), chosen = exchanged(flat)
    assert not valid[:3].any() and valid[3:].mean() > 0.8
    assert (new == ids)[~valid].all()
    changed = new != ids
    np.testing.assert_array_equal(changed[valid].sum(-1), 2)
    assert V.content_V[ids[changed]].all() and mask[changed].all()
    np.testing.assert_array_equal(np.sort(new, -1), np.sort(ids, -1))
    masked = np.asarray(chosen.token_ids_BxPxL) == V.mask  # the generator sees neither word
    np.testing.assert_array_equal(masked.sum(-1), 2 * np.asarray(chosen.chosen_BxP))
    drawn = np.asarray(chosen.positions_BxPx2)
    assert (drawn[..., 0] < drawn[..., 1])[chosen.chosen_BxP].all()
    for row in range(len(ids)):
        pairs = [tuple(pair) for pair in drawn[row][np.asarray(chosen.chosen_BxP)[row]]]
        assert len(set(pairs)) == len(pairs)


def test_only_words_that_are_plausible_in_each_others_place():
    def halves(logits_of):
        (ids, _, new, valid), _ = exchanged(logits_of)
        changed = (new != ids) & valid[:, None]
        return (ids[changed].reshape(-1, 2) < 14), valid

    one, valid = halves(same_half)
    assert (one[:, 0] == one[:, 1]).all() and valid[3:].mean() > 0.3
    free, more = halves(flat)
    assert (free[:, 0] != free[:, 1]).any() and more.sum() > valid.sum()

    def one_way(words):  # the first word is likely in both places, the second in none
        first = jax.nn.one_hot(words[..., :1], V.size)
        return jnp.broadcast_to(9.0 * first, (*words.shape, V.size))

    assert not exchanged(one_way)[0][3].any()


def test_plausible_is_a_share_of_the_best_words_probability():
    def ninth(words):  # every word is a ninth as likely as one that the caption need not have
        return flat(words).at[..., 19].set(jnp.log(9.0)).at[..., 6].set(50.0)

    # a function word (6) does not count as the best
    assert exchanged(ninth, share=0.1)[0][3].any()
    (ids, _, new, valid), _ = exchanged(ninth, share=0.12)
    assert not valid.any() and (new == ids).all()


def test_the_share_of_rows_and_no_look_at_the_picture():
    method = tiny.method("nas")
    params, state = method.init(jax.random.key(0))
    batch, draw = tiny.batch(32), Draws(jax.random.key(1))
    seen = Seen(params, state["teacher"], state, batch, draw, 0.0, None, None, None)
    ids = batch["token_ids_BxL"]

    def texts(exchange, seen=seen):
        return negative_texts(method, NtaConfig(exchange=exchange), seen)

    (none, none_shares), (half, half_shares), (full, full_shares) = map(texts, (0.0, 0.5, 1.0))
    assert "nta/exchanged_share" not in none_shares
    same = np.asarray(full.valid_BxC)[:, 0]
    assert full_shares["nta/exchanged_share"] == full_shares["nta/changed_share"] > 0.5
    np.testing.assert_array_equal(
        np.sort(np.asarray(full.ids_BxCxL)[:, 0]), np.sort(np.asarray(ids))
    )
    is_full = np.asarray((half.ids_BxCxL == full.ids_BxCxL).all((1, 2)))
    is_none = np.asarray((half.ids_BxCxL == none.ids_BxCxL).all((1, 2)))
    assert (is_full | is_none).all() and is_full.any() and is_none.any() and same.any()
    assert 0.2 < half_shares["nta/exchanged_share"] < 0.8
    other = seen._replace(batch=batch | {"image_BxHxWx3": 255 - batch["image_BxHxWx3"]})
    np.testing.assert_array_equal(half.ids_BxCxL, texts(0.5, other)[0].ids_BxCxL)
    pieces = tiny.method("nas", pieces=2)
    again = exchanged_texts(pieces, NtaConfig(exchange=1.0), seen)
    np.testing.assert_array_equal(again.ids_BxCxL, full.ids_BxCxL)


def test_refilled_captions_give_way_to_exchanged_ones():
    config = NtaConfig(exchange=0.8, start_epoch=2.0, exchange_ramp_epochs=4.0)
    shares = [float(exchanged_share(config, epoch)) for epoch in (2.0, 3.0, 6.0, 9.0)]
    np.testing.assert_allclose(shares, [0, 0.2, 0.8, 0.8])
    method = tiny.method("nas")  # 10 steps an epoch
    params, state = method.init(jax.random.key(0))
    seen = Seen(params, state["teacher"], state, tiny.batch(32), Draws(jax.random.key(1)), *[0] * 4)
    ramp = NtaConfig(exchange=1.0, exchange_ramp_epochs=2.0)
    for step, share in ((0, 0.0), (20, 1.0)):
        made, shares = negative_texts(method, ramp, seen._replace(step=step))
        without, _ = negative_texts(method, NtaConfig(exchange=share), seen)
        np.testing.assert_array_equal(made.ids_BxCxL, without.ids_BxCxL)
        np.testing.assert_allclose(shares["nta/exchanged_share"], share * made.valid_BxC.mean())

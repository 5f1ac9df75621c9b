"""Losses that read negative captions, and the masks of false negatives, against plain NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nas_jax.losses.false_negatives import others, same_words
from nas_jax.losses.infonce import infonce
from nas_jax.losses.itc import init_queue, itc_loss, positives
from nas_jax.losses.text_negatives import (
    intra_text_contrast,
    itc_with_negatives,
    next_margin,
    own_similarities,
    rank_hinge,
)

B, C, E, TEMP = 4, 2, 8, 0.3


def unit_rows(*shape, seed):
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


IMAGE, TEXT = unit_rows(B, E, seed=0), unit_rows(B, E, seed=1)
NEGATIVE = unit_rows(B, C, E, seed=2)
USABLE = np.random.default_rng(3).random((B, B, C)) < 0.7
IGNORED = np.zeros((B, B), bool)
IGNORED[0, 2] = IGNORED[2, 0] = True


def plain_itc(image, text, negative, usable, ignored):
    """Row by row, with lists of the keys that count."""
    total = 0.0
    for i in range(B):
        keys = [text[j] for j in range(B) if not ignored[i, j]]
        keys += [negative[j, c] for j in range(B) for c in range(C) if usable[i, j, c]]
        total -= image[i] @ text[i] / TEMP - np.log(sum(np.exp(image[i] @ k / TEMP) for k in keys))
        keys = [image[j] for j in range(B) if not ignored[i, j]]
        total -= image[i] @ text[i] / TEMP - np.log(sum(np.exp(text[i] @ k / TEMP) for k in keys))
    return total / (2 * B)


def test_itc_with_negatives_follows_its_definition():
    found = itc_with_negatives(IMAGE, TEXT, NEGATIVE, jnp.float32(TEMP), USABLE, IGNORED)
    expected = plain_itc(IMAGE, TEXT, NEGATIVE, USABLE, IGNORED)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    nothing = np.zeros_like(IGNORED)
    for usable, ignored in ((~USABLE, IGNORED), (USABLE, nothing)):  # each mask is felt
        assert abs(plain_itc(IMAGE, TEXT, NEGATIVE, usable, ignored) - expected) > 1e-3
    check_grads(
        lambda *x: itc_with_negatives(*x, USABLE, IGNORED),
        (IMAGE, TEXT, NEGATIVE, jnp.float32(TEMP)),
        1, ["rev"], atol=1e-2, rtol=1e-2,
    )  # fmt: skip


def test_without_usable_negatives_it_is_plain_itc():
    none = np.zeros((B, B, C), bool)
    found = itc_with_negatives(IMAGE, TEXT, NEGATIVE, jnp.float32(TEMP), none)
    queue = init_queue(jax.random.key(0), 0, E)
    truth = positives(jnp.arange(B), queue.image_id_Q, by_id=False)
    both = jnp.asarray(IMAGE), jnp.asarray(TEXT)
    plain, _, _ = itc_loss(both, both, queue, truth, jnp.float32(TEMP), jnp.float32(0))
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    grad = jax.grad(lambda x: itc_with_negatives(IMAGE, TEXT, x, jnp.float32(TEMP), none))(NEGATIVE)
    assert not grad.any()


def test_infonce_leaves_out_ignored_pairs():
    given, none = (jnp.asarray(IMAGE), jnp.asarray(TEXT), jnp.float32(TEMP)), np.zeros((B, B, C))
    expected = plain_itc(IMAGE, TEXT, NEGATIVE, none, IGNORED)
    np.testing.assert_allclose(infonce(*given, jnp.asarray(IGNORED)), expected, rtol=1e-5)
    assert infonce(*given) > expected + 1e-3
    check_grads(
        lambda *x: infonce(*x, jnp.asarray(IGNORED)), given, 1, ["rev"], atol=1e-2, rtol=1e-2
    )


def test_rank_hinge_follows_its_formula_and_is_0_where_the_margin_holds():
    true, negative = own_similarities(IMAGE, TEXT, NEGATIVE, jnp.float32(TEMP))
    margin, valid = np.array([0.5, 2.0], np.float32), USABLE[0]
    expected = np.mean([
        max(0, margin[c] + (IMAGE[b] @ NEGATIVE[b, c] - IMAGE[b] @ TEXT[b]) / TEMP) * valid[b, c]
        for b in range(B)
        for c in range(C)
    ])  # fmt: skip
    assert expected > 0.1
    np.testing.assert_allclose(rank_hinge(true, negative, valid, margin), expected, rtol=1e-5)
    far = negative - jnp.maximum(negative - true[:, None], -99).max() - 3.0  # all 3 below or more
    held = lambda x: rank_hinge(true, x, np.ones((B, C), bool), margin)  # noqa: E731
    assert held(far) == 0 and not jax.grad(held)(far).any()
    assert held(far + 2.5) > 0  # the nearest is only 0.5 below
    check_grads(lambda *x: rank_hinge(*x, valid, margin), (true, negative), 1, ["rev"])


def test_the_margin_is_the_mean_gap_of_valid_negatives_in_its_bounds():
    true = jnp.array([5.0, 5.0, 5.0, 5.0])
    negative = jnp.array([[4.0, 9.0], [2.0, 9.0], [0.0, 9.0], [-90.0, 9.0]])
    valid = jnp.array([[True, True], [True, True], [False, True], [False, True]])
    old = jnp.array([7.0, 7.0])
    np.testing.assert_allclose(next_margin(true, negative, valid, old, 10.0), [2.0, 0.0])
    everything = jnp.ones_like(valid)
    np.testing.assert_allclose(next_margin(true, negative, everything, old, 10.0), [10.0, 0.0])
    np.testing.assert_allclose(next_margin(true, negative, ~everything, old, 10.0), old)
    assert not jax.grad(lambda x: next_margin(true, x, valid, old, 10.0).sum())(negative).any()


def test_intra_text_contrast_follows_its_definition():
    expected = 0.0
    for i in range(B):
        true = IMAGE[i] @ TEXT[i] / TEMP
        keys = [NEGATIVE[j, c] for j in range(B) for c in range(C) if USABLE[i, j, c]]
        expected -= true - np.log(np.exp(true) + sum(np.exp(TEXT[i] @ k / TEMP) for k in keys))
    found = intra_text_contrast(IMAGE, TEXT, NEGATIVE, jnp.float32(TEMP), USABLE)
    np.testing.assert_allclose(found, expected / B, rtol=1e-5)
    everything = intra_text_contrast(IMAGE, TEXT, NEGATIVE, jnp.float32(TEMP), USABLE | True)
    assert everything > found + 1e-3  # the mask is felt
    check_grads(
        lambda *x: intra_text_contrast(*x, USABLE),
        (IMAGE, TEXT, NEGATIVE, jnp.float32(TEMP)),
        1, ["rev"], atol=1e-2, rtol=1e-2,
    )  # fmt: skip


def test_same_words_are_found_and_synonyms_where_a_table_joins_them():
    ids = jnp.array([[2, 8, 9, 0], [2, 8, 9, 7], [2, 8, 10, 0], [2, 9, 8, 0]])
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]], bool)
    same = np.eye(4, dtype=bool)
    same[0, 1] = same[1, 0] = True  # what stands on padding is no word
    np.testing.assert_array_equal(same_words(ids, mask, ids, mask), same)
    np.testing.assert_array_equal(others(jnp.asarray(same)), same & ~np.eye(4, dtype=bool))
    classes = jnp.arange(12).at[10].set(9)
    joined = np.array(same)
    joined[:2, 2] = joined[2, :2] = True  # but not the other order
    np.testing.assert_array_equal(same_words(ids, mask, ids, mask, classes), joined)
    assert not same_words(ids, mask & False, ids, mask & False).any()


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_itc_leaves_out_ignored_keys_of_batch_and_queue(alpha):
    taught = unit_rows(B, E, seed=4), unit_rows(B, E, seed=5)
    queue = init_queue(jax.random.key(0), 3, E)
    queued = np.zeros((B, 3), bool)
    queued[1, 2] = True
    own, _ = positives(jnp.arange(B), queue.image_id_Q, by_id=False)
    given = (jnp.asarray(IMAGE), jnp.asarray(TEXT)), tuple(map(jnp.asarray, taught)), queue
    rest = jnp.float32(TEMP), jnp.float32(alpha)
    found, i2t, _ = itc_loss(*given, (own, None, IGNORED, queued), *rest)
    expected = 0.0
    for query, teacher, keys in (
        (IMAGE, taught[0], np.concatenate([taught[1], queue.text_QxE])),
        (TEXT, taught[1], np.concatenate([taught[0], queue.image_QxE])),
    ):
        for i in range(B):
            kept = np.flatnonzero(~np.concatenate([IGNORED[i], queued[i]]))
            logits, soft = query[i] @ keys[kept].T / TEMP, np.exp(teacher[i] @ keys[kept].T / TEMP)
            target = alpha * soft / soft.sum() + (1 - alpha) * (kept == i)
            expected -= (target * (logits - np.log(np.exp(logits).sum()))).sum() / (2 * B)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(i2t, IMAGE @ taught[1].T / TEMP, rtol=1e-4, atol=1e-5)
    everything, _, _ = itc_loss(*given, (own, None), *rest)
    assert abs(everything - found) > 1e-3
    grad = jax.grad(
        lambda x: itc_loss((x, given[0][1]), *given[1:], (own, None, IGNORED, queued), *rest)[0]
    )(given[0][0])
    assert np.isfinite(grad).all()

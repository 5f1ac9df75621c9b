"""Each objective against an independent formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.losses.focal import focal_cross_entropy
from nas_jax.losses.itc import enqueue, init_queue, itc_loss, positives
from nas_jax.losses.itm import MatchRows, accuracy, itm_loss
from nas_jax.losses.mlm import mask_tokens, mlm_mean, mlm_rows
from nas_jax.losses.soft_targets import soft_cross_entropy
from nas_jax.parallel.mesh import gather_positions


def unit_rows(count, dim, seed):
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return jnp.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_itc_without_queue_and_teacher_is_plain_infonce():
    image, text, temp = unit_rows(5, 8, 0), unit_rows(5, 8, 1), 0.1
    queue = init_queue(jax.random.key(0), 0, 8)
    targets = positives(jnp.arange(5), queue.image_id_Q, by_id=False)
    both, zero = (image, text), jnp.float32(0.0)
    loss, _, _ = itc_loss(both, both, queue, targets, jnp.float32(temp), zero)
    logits = np.asarray(image) @ np.asarray(text).T / temp
    expected = -(np.diag(log_softmax(logits)).mean() + np.diag(log_softmax(logits.T)).mean()) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_itc_soft_targets_and_queue_follow_the_definition():
    image, text, taught_image, taught_text = (unit_rows(4, 8, seed) for seed in range(4))
    queue = init_queue(jax.random.key(0), 6, 8)
    targets = positives(jnp.arange(4), queue.image_id_Q, by_id=False)
    alpha, temp = 0.4, 0.07
    loss, i2t, _ = itc_loss(
        (image, text),
        (taught_image, taught_text),
        queue,
        targets,
        jnp.float32(temp),
        jnp.float32(alpha),
    )
    expected = 0.0
    for query, taught, keys in (
        (image, taught_image, np.concatenate([taught_text, queue.text_QxE])),
        (text, taught_text, np.concatenate([taught_image, queue.image_QxE])),
    ):
        soft = np.exp(log_softmax(np.asarray(taught) @ keys.T / temp))
        target = alpha * soft + (1 - alpha) * np.eye(4, 10)
        expected += -(target * log_softmax(np.asarray(query) @ keys.T / temp)).sum(-1).mean() / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        i2t, np.asarray(image) @ np.asarray(taught_text).T / temp, rtol=1e-5, atol=1e-5
    )


def test_soft_cross_entropy_and_its_gradient_follow_the_definition():
    rng, alpha = np.random.default_rng(0), jnp.float32(0.4)
    logits, teacher = (
        tuple(jnp.asarray(3 * rng.normal(size=(5, k)), jnp.float32) for k in (4, 7))
        for _ in range(2)
    )
    weights, right = jnp.asarray(rng.random(5), jnp.float32), jnp.asarray([3, 0, 2, 2, 1])
    whole = jax.nn.one_hot(right, 11)

    def plain(logits, teacher, alpha):
        joined = jnp.concatenate(logits, axis=1)
        soft = jax.nn.softmax(jnp.concatenate(teacher, axis=1)) if teacher else 0
        target = alpha * soft + (1 - alpha) * whole
        return -(weights * (target * jax.nn.log_softmax(joined)).sum(-1)).sum()

    for truth, taught in (
        ((right, None), teacher),
        ((whole[:, :4], whole[:, 4:]), teacher),
        ((right, None), None),
    ):
        share = alpha if taught else jnp.float32(0)

        def ours(logits, truth=truth, taught=taught, share=share):
            return (weights * soft_cross_entropy(logits, taught, truth, share)).sum()

        one, other = (
            jax.value_and_grad(ours)(logits),
            jax.value_and_grad(plain)(logits, taught, share),
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other
        )


def test_focal_loss_follows_its_formula_and_without_focus_is_cross_entropy():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(5, 7))
    target = np.exp(log_softmax(rng.normal(size=(5, 7))))

    def formula(logits, gamma):
        log_p = log_softmax(logits)
        return -(target * (1 - np.exp(log_p)) ** gamma * log_p).sum(-1)

    step = 1e-5 * rng.normal(size=logits.shape)
    inputs = jnp.asarray(logits, jnp.float32), jnp.asarray(target, jnp.float32)
    for gamma in (0.0, 0.5, 2.0):
        loss = focal_cross_entropy(*inputs, gamma)
        np.testing.assert_allclose(loss, formula(logits, gamma), rtol=2e-5)
        slope = jax.grad(lambda x, g=gamma: focal_cross_entropy(x, inputs[1], g).sum())(inputs[0])
        rise = (formula(logits + step, gamma) - formula(logits - step, gamma)).sum() / 2
        np.testing.assert_allclose((np.asarray(slope) * step).sum(), rise, rtol=1e-4)
    sure = jnp.asarray([[80.0, 0.0]])  # p rounds to 1
    grad = jax.grad(lambda x: focal_cross_entropy(x, jnp.asarray([[1.0, 0.0]]), 0.5).sum())(sure)
    assert np.isfinite(grad).all()


def test_positives_by_id_share_the_target_and_the_queue_is_a_ring():
    queue = init_queue(jax.random.key(0), 6, 8)
    # noise is nobody's
    assert not (positives(jnp.array([0, 1]), queue.image_id_Q, by_id=True)[1] > 0).any()
    for ids in ([7, 8], [9, 7], [1, 2], [3, 4]):
        queue = enqueue(
            queue, unit_rows(2, 8, ids[0]), unit_rows(2, 8, ids[1]), jnp.array(ids, jnp.int32)
        )
    np.testing.assert_array_equal(queue.image_id_Q, [3, 4, 9, 7, 1, 2])
    assert int(queue.pointer) == 2
    np.testing.assert_array_equal(queue.image_QxE[2:4], unit_rows(2, 8, 9))
    targets = np.concatenate(positives(jnp.array([7, 5]), queue.image_id_Q, by_id=True), axis=1)
    np.testing.assert_allclose(targets[0], [0.5, 0, 0, 0, 0, 0.5, 0, 0])
    np.testing.assert_allclose(targets[1], np.eye(8)[1])
    with pytest.raises(ValueError, match="must divide"):
        enqueue(queue, unit_rows(4, 8, 0), unit_rows(4, 8, 0), jnp.arange(4))


def rows(seed, label, valid):
    return MatchRows(
        jnp.asarray(np.random.default_rng(seed).normal(size=(4, 2)), jnp.float32), label, valid
    )


def test_matching_loss_is_the_mean_over_valid_rows_and_both_forms_agree_in_scale():
    everything = jnp.ones(4, bool)
    groups = {
        "positive": rows(0, 1, everything),
        "hard_image": rows(1, 0, everything),
        "hard_text": rows(2, 0, everything),
        "nva": rows(3, 0, everything),
        "nta": rows(4, 0, everything),
    }
    per_row = np.concatenate(
        [-log_softmax(np.asarray(group.logits_Bx2))[:, group.label] for group in groups.values()]
    )
    mean = itm_loss(groups)
    assert float(mean) == pytest.approx(per_row.mean(), rel=1e-5)
    weighted = itm_loss(groups, {"nva": 1 / 3, "nta": 1 / 3})
    assert float(weighted) == pytest.approx(float(mean) * 5 / 3, rel=1e-5)

    unchanged = jnp.array([True, False, True, False])
    groups["nta"] = rows(4, 0, unchanged)
    kept = np.concatenate([per_row[:16], per_row[16:][np.asarray(unchanged)]])
    assert float(itm_loss(groups)) == pytest.approx(kept.mean(), rel=1e-5)
    gradient = jax.grad(lambda logits: itm_loss(groups | {"nta": MatchRows(logits, 0, unchanged)}))(
        groups["nta"].logits_Bx2
    )
    assert (np.asarray(gradient)[~np.asarray(unchanged)] == 0).all()
    nothing = {"positive": rows(0, 1, jnp.zeros(4, bool))}
    assert float(itm_loss(nothing)) == 0 and float(accuracy(nothing["positive"])) == 0


def test_masking_follows_bert_and_leaves_specials_and_padding_alone():
    batch = tiny.batch(400, 12)
    ids, mask = np.asarray(batch["token_ids_BxL"]), np.asarray(batch["token_mask_BxL"])
    texts = (batch["token_ids_BxL"], batch["token_mask_BxL"])
    masked = mask_tokens(jax.random.key(0), *texts, tiny.VOCABULARY, 0.3)
    picked = np.zeros_like(mask)
    real = np.asarray(masked.weights_BxM) > 0
    picked[np.nonzero(real)[0], np.asarray(masked.positions_BxM)[real]] = True
    eligible = mask & (ids != tiny.VOCABULARY.cls)
    assert not (picked & ~eligible).any()
    assert picked.sum() / eligible.sum() == pytest.approx(0.3, abs=0.03)
    new = np.asarray(masked.token_ids_BxL)
    np.testing.assert_array_equal(new[~picked], ids[~picked])
    assert (new[picked] == tiny.VOCABULARY.mask).mean() == pytest.approx(
        0.8 + 0.1 / tiny.VOCAB, abs=0.04
    )
    assert (new[picked] == ids[picked]).mean() == pytest.approx(0.1 + 0.1 / tiny.VOCAB, abs=0.04)
    rows, positions = np.nonzero(real)[0], np.asarray(masked.positions_BxM)[real]
    np.testing.assert_array_equal(np.asarray(masked.targets_BxM)[real], ids[rows, positions])

    capped = mask_tokens(jax.random.key(0), *texts, tiny.VOCABULARY, 0.3, max_masked=2)
    assert capped.positions_BxM.shape == (400, 2)
    changed = (np.asarray(capped.token_ids_BxL) != ids).sum(-1)
    # nothing is corrupted that the loss does not see
    assert (changed <= np.asarray(capped.weights_BxM).sum(-1)).all()


def test_mlm_on_gathered_positions_equals_the_loss_on_all_of_them():
    batch = tiny.batch(6, 10)
    masked = mask_tokens(
        jax.random.key(3),
        *(batch[k] for k in ("token_ids_BxL", "token_mask_BxL")),
        tiny.VOCABULARY,
        0.4,
    )
    rng = np.random.default_rng(0)
    student, taught = (
        jnp.asarray(rng.normal(size=(6, 10, tiny.VOCAB)), jnp.float32) for _ in range(2)
    )
    gathered = (gather_positions(logits, masked.positions_BxM) for logits in (student, taught))
    loss = mlm_mean(mlm_rows(*gathered, masked, jnp.float32(0.4)), masked)
    total, count = 0.0, 0
    for row, position, target, weight in zip(
        np.repeat(np.arange(6), 10), *(np.asarray(x).ravel() for x in masked[1:]), strict=True
    ):
        log_p = log_softmax(np.asarray(student)[row, position])
        soft = np.exp(log_softmax(np.asarray(taught)[row, position]))
        total += weight * (0.6 * -log_p[target] + 0.4 * -(soft * log_p).sum())
        count += weight
    assert count > 5
    assert float(loss) == pytest.approx(total / count, rel=1e-5)
    empty = masked._replace(weights_BxM=jnp.zeros((6, 10)))
    assert float(mlm_mean(mlm_rows(student, taught, empty, jnp.float32(0.4)), empty)) == 0

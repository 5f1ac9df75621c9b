"""FDT: sparsemax and the mix of tokens against NumPy, the schedule, padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole
from jax.test_util import check_grads

from nas_jax.losses.infonce import infonce
from nas_jax.losses.sparsemax import sparsemax
from nas_jax.methods.fdt import FdtConfig
from nas_jax.train.optimizer import OptimizerConfig, make_optimizer
from nas_jax.train.state import init_state
from nas_jax.train.step import make_train_step
from nas_jax.utils.errors import ConfigError

CONFIG = FdtConfig(tokens=12, attention_temp=1.0, attention_decay=0.5, attention_temp_min=0.2)


def on_the_simplex(x):
    """The nearest point of the simplex to one vector: tau by bisection, without a sort."""
    low, high = x.min() - 1.0, x.max()
    for _ in range(200):
        tau = (low + high) / 2
        low, high = (tau, high) if np.maximum(x - tau, 0).sum() > 1 else (low, tau)
    return np.maximum(x - tau, 0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_sparsemax_is_the_nearest_point_of_the_simplex(scale):
    x = scale * np.random.default_rng(0).normal(size=(5, 9)) + 100
    found = np.asarray(sparsemax(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(found, [on_the_simplex(row) for row in x], atol=1e-4)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    if scale == 50.0:  # a lead of more than 1 takes all
        np.testing.assert_array_equal(found, np.eye(9)[x.argmax(-1)])
    if scale == 0.01:
        assert (found > 0).all()


def test_the_gradient_of_sparsemax_is_that_of_its_values():
    x = jnp.asarray(0.4 * np.random.default_rng(1).normal(size=(4, 7)), jnp.float32)
    support = np.asarray(sparsemax(x)) > 0
    assert support.any(0).any() and not support.all()
    weights = np.random.default_rng(2).normal(size=(4, 7))
    expected, step = np.zeros((4, 7)), 1e-6
    for row in range(4):
        for place in range(7):
            moved = step * np.eye(7)[place]
            high, low = (on_the_simplex(np.asarray(x[row], float) + d) for d in (moved, -moved))
            expected[row, place] = weights[row] @ (high - low) / (2 * step)
    grad = jax.grad(lambda x: (sparsemax(x) * weights).sum())(x)
    np.testing.assert_allclose(grad, expected, atol=1e-4)
    assert not np.any(np.asarray(grad)[~support])
    np.testing.assert_allclose(grad.sum(-1), 0, atol=1e-6)


def test_a_feature_is_the_mix_of_the_tokens_that_some_word_is_most_like():
    method = tiny.built(CONFIG, model=tiny.model(dropout=0.0, init_std=0.3))
    params, _ = method.init(jax.random.key(0))
    net, temp, batch = method.apply(params), 0.3, whole.batch(method)
    ids, mask = batch["token_ids_BxL"], np.asarray(batch["token_mask_BxL"])
    tokens, feature, weight = net.encode_text(ids, batch["token_mask_BxL"], temp)
    query, codes = np.asarray(net.text_query(tokens)), np.asarray(params["codebook"])
    for row in range(len(ids)):
        products = [q @ codes.T / np.sqrt(8) / temp for q in query[row][mask[row]]]
        expected = on_the_simplex(np.max(products, axis=0).astype(np.float64))
        np.testing.assert_allclose(weight[row], expected, atol=1e-4)
        mixed = expected @ codes
        np.testing.assert_allclose(feature[row], mixed / np.linalg.norm(mixed), atol=1e-4)
    # one set of tokens for both: [CLS] of the picture has no say
    image_tokens, _, image_weight = net.encode_image(batch["image_BxHxWx3"], temp)
    products = np.asarray(net.image_query(image_tokens[:, 1:])) @ codes.T / np.sqrt(8) / temp
    expected = [on_the_simplex(row.max(0).astype(np.float64)) for row in products]
    np.testing.assert_allclose(image_weight, expected, atol=1e-4)


def test_more_padding_changes_no_feature():
    method = tiny.built(CONFIG)
    params, _ = method.init(jax.random.key(0))
    batch = tiny.batch()
    ids, mask = batch["token_ids_BxL"], batch["token_mask_BxL"]
    longer = (jnp.pad(x, ((0, 0), (0, 4))) for x in (ids, mask))
    found, expected = (
        method.encode_text(params, *longer)[1],
        method.encode_text(params, ids, mask)[1],
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_infonce_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    image, text = (rng.normal(size=(4, 6)) for _ in range(2))
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    logits = image @ text.T / 0.2
    sums = [np.log(np.exp(logits).sum(axis)) for axis in (0, 1)]
    expected = np.mean(sums) - np.diag(logits).mean()
    given = jnp.asarray(image, jnp.float32), jnp.asarray(text, jnp.float32)
    np.testing.assert_allclose(infonce(*given, 0.2), expected, rtol=1e-5)
    check_grads(lambda *x: infonce(*x, 0.2), given, 1, ("rev",), rtol=2e-2)


def test_the_attention_follows_its_schedule_and_not_the_gradient():
    method = tiny.built(CONFIG)  # 10 steps an epoch
    temps = [float(method.scheduled({}, step)["attention_temp"]) for step in (0, 9, 10, 20, 30, 99)]
    np.testing.assert_allclose(temps, [1, 1, 0.5, 0.25, 0.2, 0.2])
    optimizer, schedule = make_optimizer(
        OptimizerConfig(schedule="smooth", warmup_steps=1), 100, 10
    )
    step = jax.jit(make_train_step(method, optimizer, schedule), static_argnums=2)
    state, batch, losses = init_state(method, optimizer, 0), whole.batch(method), []
    for number in range(11):
        found = state.params["attention_temp"]
        np.testing.assert_allclose(found, method.scheduled({}, number)["attention_temp"])
        state, metrics = step(state, batch, None)
        assert metrics["fdt/attention_temp"] == found
        losses.append(float(metrics["loss"]))
    assert losses[9] < losses[0]
    with pytest.raises(ConfigError, match="attention_temp"):
        tiny.built(FdtConfig(attention_decay=0.0))


def test_every_part_is_trained_but_the_scheduled_one():
    grads = whole.gradients(tiny.built(CONFIG))[3]
    assert grads.pop("attention_temp") == 0
    whole.check_every_group_is_trained(grads)


@pytest.mark.slow
def test_it_works_in_pieces_and_in_bfloat16():
    whole.check_pieces(CONFIG)


@pytest.mark.slow
def test_eight_devices_give_the_same_numbers():
    whole.check_devices("fdt")


@pytest.mark.slow
def test_it_trains_resumes_and_is_scored(tmp_path):
    whole.check_run(CONFIG, tmp_path, ("itc",), falls=False)

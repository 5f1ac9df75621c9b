"""The visual dictionary against its definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.models import codebook


def features(count=40, dim=6, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(1, count, dim)), jnp.float32)


def test_zero_decay_is_a_k_means_step_and_decay_one_changes_nothing():
    state = codebook.init_dictionary(jax.random.key(0), 8, 6)
    x = features()
    ids, _ = codebook.nearest_code(x, state.codes_KxD)
    moved = codebook.ema_update(state, x, ids, jnp.float32(0.0))
    flat, ids = np.asarray(x[0]), np.asarray(ids[0])
    assert 1 < len(np.unique(ids)) < 8  # both used and unused codes occur
    for code in range(8):
        mean = (
            flat[ids == code].mean(0) if (ids == code).any() else np.asarray(state.codes_KxD[code])
        )
        np.testing.assert_allclose(moved.codes_KxD[code], mean, rtol=1e-5, atol=1e-6)
    frozen = codebook.ema_update(state, x, ids[None], jnp.float32(1.0))
    np.testing.assert_array_equal(frozen.codes_KxD, state.codes_KxD)
    np.testing.assert_array_equal(frozen.counts_K, state.counts_K)


def test_nearest_code_is_the_brute_force_argmin_and_ties_go_to_the_first():
    x, codes = features(30, 5, 1), features(9, 5, 2)[0]
    codes = codes.at[7].set(codes[2])
    ids, distance = codebook.nearest_code(x, codes)
    brute = np.square(np.asarray(x[0])[:, None] - np.asarray(codes)[None]).sum(-1)
    np.testing.assert_array_equal(ids[0], brute.argmin(-1))
    np.testing.assert_allclose(distance[0], brute.min(-1), rtol=1e-4, atol=1e-5)


def test_gradient_passes_straight_through_to_the_feature():
    state = codebook.init_dictionary(jax.random.key(0), 8, 6)
    config = codebook.DictionaryConfig(codes=8, data_start=False)

    def loss(x):
        _, _, quantized, _ = codebook.quantize(
            config, state, x, codebook.decay_at(config, state.step, 10), jax.random.key(1)
        )
        return jnp.sum(quantized * jnp.arange(6.0))

    gradient = jax.grad(loss)(features())
    np.testing.assert_allclose(gradient, jnp.broadcast_to(jnp.arange(6.0), gradient.shape))


def test_dead_codes_vanish_in_the_literal_mode_only_and_revival_brings_codes_back():
    x = features(200, 6, 3) * 0.05 + 1.0  # one cluster, far from most Gaussian codes
    runs = {}
    for name, literal, revive in (
        ("literal", True, 0),
        ("default", False, 0),
        ("revived", False, 5),
    ):
        config = codebook.DictionaryConfig(
            codes=32, literal=literal, data_start=False, revive_every=revive
        )
        state = codebook.init_dictionary(jax.random.key(0), 32, 6, literal)
        for step in range(12):
            key = jax.random.key(step)
            state, _, _, metrics = codebook.quantize(
                config, state, x, codebook.decay_at(config, state.step, 1000), key
            )
        runs[name] = (np.linalg.norm(state.codes_KxD, axis=-1), metrics)
    assert (runs["literal"][0] < 1e-6).sum() > 16
    assert (runs["default"][0] > 0.1).all()
    used = {name: float(metrics["dictionary/used_share"]) for name, (_, metrics) in runs.items()}
    assert used["revived"] > 3 * max(used["literal"], used["default"])
    assert float(runs["revived"][1]["dictionary/perplexity"]) > float(
        runs["default"][1]["dictionary/perplexity"]
    )
    assert float(runs["revived"][1]["dictionary/dead_codes"]) < float(
        runs["default"][1]["dictionary/dead_codes"]
    )


def test_start_from_data_puts_every_code_on_a_feature_even_with_fewer_features_than_codes():
    state = codebook.init_dictionary(jax.random.key(0), 16, 6)
    x = features(10)
    started = codebook.start_from_data(state, x, jax.random.key(1))
    nearest = (
        np.square(np.asarray(started.codes_KxD)[:, None] - np.asarray(x[0])[None]).sum(-1).min(-1)
    )
    np.testing.assert_allclose(nearest, 0, atol=1e-10)


@pytest.mark.parametrize(
    ("decay", "step", "expected"),
    [
        ("ramp", 0, 0.2),
        ("ramp", 17, 0.2),
        ("ramp", 45, 0.5),
        ("ramp", 90, 1.0),
        ("ramp", 99, 1.0),
        ("constant", 50, 0.2),
    ],
)
def test_decay_schedules(decay, step, expected):
    config = codebook.DictionaryConfig(decay=decay)
    assert float(codebook.decay_at(config, jnp.int32(step), 100)) == pytest.approx(expected)


def test_statistics_are_those_of_the_global_batch_on_any_number_of_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    config = codebook.DictionaryConfig(codes=8, data_start=False)
    state = codebook.init_dictionary(jax.random.key(0), 8, 6)
    x = jnp.reshape(features(64), (8, 8, 6))

    def update(state, x):
        decay = codebook.decay_at(config, state.step, 10)
        return codebook.quantize(config, state, x, decay, jax.random.key(1))[0]

    one = jax.jit(update)(state, x)
    four = jax.jit(update)(state, jax.device_put(x, rows))
    np.testing.assert_allclose(one.codes_KxD, four.codes_KxD, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.counts_K, four.counts_K, rtol=1e-6)
    local = update(state, x[:2])  # negative control: one device's share alone
    assert np.abs(np.asarray(local.counts_K - one.counts_K)).max() > 0.1

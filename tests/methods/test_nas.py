"""Properties of the whole loss that hold at any size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.losses.itc import init_queue
from nas_jax.methods.config import ItcConfig, NasMlmConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.nas import Stage
from nas_jax.methods.states import QUEUE_READERS
from nas_jax.methods.terms import Encoded, Seen
from nas_jax.methods.variants import VARIANTS
from nas_jax.models.codebook import DictionaryConfig, start_from_data
from nas_jax.negatives.nta import NtaConfig
from nas_jax.negatives.nva import NvaConfig
from nas_jax.train.optimizer import OptimizerConfig, make_optimizer
from nas_jax.train.state import init_state
from nas_jax.train.step import make_train_step


def one_loss(method, batch, seed=0):
    """Loss, next state and metrics of one batch."""
    params, state = jax.jit(method.init)(jax.random.key(seed))
    loss = jax.jit(method.loss, static_argnums=5)
    value, (state, metrics) = loss(
        params, state, batch, Draws(jax.random.key(9)), jnp.int32(3), method.stage(3)
    )
    return value, state, metrics


def test_nas_with_everything_off_is_albef():
    batch = tiny.batch()
    nas, albef = (one_loss(tiny.method("albef", name=name), batch) for name in ("nas", "albef"))
    jax.tree.map(np.testing.assert_array_equal, nas, albef)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_has_the_parts_it_names(variant):
    method = tiny.method(variant)

    def run(key):
        params, state = method.init(key)
        return params, method.loss(
            params, state, tiny.batch(), Draws(key), jnp.int32(3), method.stage(3)
        )[1]

    params, (state, metrics) = jax.eval_shape(run, jax.random.key(0))
    on = VARIANTS[variant]
    assert ("neck" in params) == on["dictionary"] == ("dictionary" in state)
    assert ("generator_head" in params) == on["nta"] == ("itm_accuracy/nta" in metrics)
    assert ("itm_accuracy/nva" in metrics) == on["nva"]


def test_every_parameter_group_is_trained():
    method = tiny.method("nas")
    params, state = jax.jit(method.init)(jax.random.key(0))

    @jax.jit
    def gradients(params):
        return jax.grad(
            lambda params: method.loss(
                params, state, tiny.batch(), Draws(jax.random.key(1)), jnp.int32(0), method.stage(0)
            )[0]
        )(params)

    for group, leaves in gradients(params).items():
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(leaves)) > 0, group


def train(method, batch, steps):
    optimizer, schedule = make_optimizer(
        OptimizerConfig(schedule="smooth", lr=1e-3, warmup_steps=1), 100, 10
    )
    step = jax.jit(make_train_step(method, optimizer, schedule), static_argnums=2)
    state, losses = init_state(method, optimizer, 0), []
    for index in range(steps):
        state, metrics = step(state, batch, method.stage(index))
        losses.append({name: float(value) for name, value in metrics.items()})
    return state, losses


@pytest.mark.parametrize("size", [1, 2])
def test_batches_of_one_and_two_train_without_nan(size):
    state, losses = train(tiny.method("nas"), tiny.batch(size), 3)
    assert all(np.isfinite(value) for metrics in losses for value in metrics.values())
    assert all(
        bool(jnp.isfinite(leaf).all())
        for leaf in jax.tree.leaves(state)
        if leaf.dtype != jnp.uint32
    )


def test_bfloat16_matmuls_train_like_float32_and_keep_the_state_in_float32():
    runs = {
        dtype: train(
            tiny.method("nas", model=tiny.model(dtype=dtype, dropout=0.0)), tiny.batch(), 12
        )
        for dtype in ("float32", "bfloat16")
    }
    exact, rounded = (runs[dtype][1] for dtype in ("float32", "bfloat16"))
    assert exact[0]["loss"] != rounded[0]["loss"]  # otherwise nothing was rounded
    for key in ("loss/itc", "loss/mlm"):
        assert rounded[0][key] == pytest.approx(exact[0][key], rel=0.02)
        assert rounded[-1][key] == pytest.approx(exact[-1][key], rel=0.1)
    assert exact[-1]["loss"] < exact[0]["loss"] and rounded[-1]["loss"] < rounded[0]["loss"]
    leaves = jax.tree.leaves(runs["bfloat16"][0])
    assert {leaf.dtype for leaf in leaves} <= {
        jnp.dtype(name) for name in ("float32", "int32", "uint32")
    }


def test_stages_switch_by_epoch_and_freeze_the_dictionary():
    method = tiny.method(
        "nas",
        nva=NvaConfig(start_epoch=3),
        nta=NtaConfig(start_epoch=1.5),
        mlm=NasMlmConfig(dictionary_from_epoch=2),
    )
    assert method.stage(0) == method.stage(14) == Stage()
    assert method.stage(15) == Stage(nta=True)
    assert method.stage(20) == Stage(nta=True, mlm_on_dictionary=True)
    assert method.stage(30) == Stage(
        nva=True, nta=True, dictionary_frozen=True, mlm_on_dictionary=True
    )
    params, state = jax.jit(method.init)(jax.random.key(0))
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 17, 16)), jnp.float32)
    for frozen in (False, True):
        words, _ = method.look_up(
            params, state["dictionary"], tokens, key=jax.random.key(1), frozen=frozen
        )
        after = words.state
        started = start_from_data(state["dictionary"], jnp.zeros((1, 1, 16)), jax.random.key(0))
        assert after.step == started.step + 1
        assert bool((after.counts_K != started.counts_K).any()) == (not frozen)


def test_the_teacher_is_a_moving_average_and_the_temperature_stays_inside_its_bounds():
    method = tiny.method("albef", itc=ItcConfig(queue_size=24, temp_min=0.05))
    params, state = method.init(jax.random.key(0))
    moved = jax.tree.map(lambda leaf: leaf + 1.0, params)
    teacher = method.moved_teacher(state["teacher"], moved)
    expected = jax.tree.map(lambda old: 0.995 * old + 0.005 * (old + 1.0), state["teacher"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), teacher, expected
    )
    assert "temp" not in teacher and "itm_head" not in teacher
    assert float(method.constrain(params | {"temp": jnp.float32(0.01)})["temp"]) == pytest.approx(
        0.05
    )


def test_queue_modes():
    features = jnp.eye(6, 8)
    encoded = Encoded(None, features, None, features, {})
    params, batch, queues = {"temp": jnp.float32(0.07)}, tiny.batch(), {}
    seen = Seen(params, {}, {}, batch, None, jnp.float32(0.4), None, encoded, encoded)
    for name, itc in (
        ("full", ItcConfig(queue_size=24)),
        ("frozen", ItcConfig(queue_size=24, queue_frozen=True)),
        ("none", ItcConfig(queue_size=0)),
    ):
        queue = init_queue(jax.random.key(0), itc.queue_size, 8)
        method = tiny.method("albef", itc=itc)
        assert method.contrast(seen._replace(state={"queue": queue})).i2t_BxB.shape == (6, 6)
        state = {"queue": queue, "new_keys": method.new_keys(seen)}
        for grad in (0.0, jnp.nan):  # a step whose gradients are lost leaves the rows as they are
            grads = {reader: {"kernel": jnp.full((2, 2), grad)} for reader in QUEUE_READERS}
            queues[name, grad == 0] = method.after_gradient(state, grads)["queue"]
    frozen, full, lost = queues["frozen", True], queues["full", True], queues["full", False]
    assert int(frozen.pointer) == 0 and int(full.pointer) == 6
    assert queues["none", True].image_QxE.shape == (0, 8)
    np.testing.assert_array_equal(full.image_QxE[:6], features)
    np.testing.assert_array_equal(full.image_QxE[6:], frozen.image_QxE[6:])
    np.testing.assert_array_equal(lost.image_QxE, frozen.image_QxE)


def aligned_and_mixed(method, params, x):
    neck = method.apply(params).neck
    return neck.align(x), neck.mix(x, x)


def test_the_literal_gate_has_two_values():
    method = tiny.method("vd", dictionary=DictionaryConfig(codes=12, literal=True))
    params, _ = method.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16)), jnp.float32)
    align, mixed = aligned_and_mixed(method, params, x)
    share = np.median((mixed - x) / (align - x), axis=-1)  # u = g a + (1 - g) x
    near = np.minimum(np.abs(share - 0.731), np.abs(share - 0.269))
    # a patch whose two gate values are nearly equal falls in between
    assert np.quantile(near, 0.9) < 5e-3
    plain = tiny.method("vd")
    params, _ = plain.init(jax.random.key(0))
    align, mixed = aligned_and_mixed(plain, params, x)
    # ours starts as the mean
    np.testing.assert_allclose(mixed, (align + x) / 2, rtol=1e-5, atol=1e-6)
